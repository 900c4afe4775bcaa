// What every benchmark prints: one table for people, and with --json FILE the same rows for programs.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx::bench {

/// The processor's name and the cores this process sees, from /proc/cpuinfo.
inline std::string machine() {
  std::ifstream in("/proc/cpuinfo");
  std::string model = "unknown processor";
  int cores = 0;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("processor")) ++cores;
    if (line.starts_with("model name")) model = line.substr(line.find(':') + 2);
  }
  return model + ", " + std::to_string(cores) + " cores";
}

/// Rows are objects of equal keys: {"shape": "…", "ms": 1.2}. Numbers are printed with three significant
/// digits or as integers.
class Report {
 public:
  explicit Report(std::string name) : name_(std::move(name)) {}

  void add(nlohmann::ordered_json row) { rows_.push_back(std::move(row)); }

  /// Prints the table; arguments are those of main, of which `--json FILE` is understood. Gives the exit
  /// status.
  int finish(std::span<char*> arguments) const {
    std::printf("%s on %s\n", name_.c_str(), machine().c_str());
    print();
    for (size_t i = 1; i + 1 < arguments.size(); ++i) {
      if (std::string_view(arguments[i]) != "--json") continue;
      std::ofstream out(arguments[i + 1]);
      out << nlohmann::ordered_json{{"name", name_}, {"machine", machine()}, {"rows", rows_}}.dump(1) << '\n';
      if (!out.flush()) {
        std::fprintf(stderr, "cannot write %s\n", arguments[i + 1]);
        return 1;
      }
    }
    return 0;
  }

 private:
  static std::string text(const nlohmann::ordered_json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (!value.is_number_float()) return value.dump();
    char buffer[32];
    const auto v = value.get<double>();
    std::snprintf(buffer, sizeof buffer, v >= 100 ? "%.0f" : v >= 10 ? "%.1f" : v >= 1 ? "%.2f" : "%.3f", v);
    return buffer;
  }

  void print() const {
    if (rows_.empty()) return;
    std::vector<std::vector<std::string>> cells(1);
    for (const auto& [key, value] : rows_.front().items()) cells[0].push_back(key);
    for (const auto& row : rows_) {
      auto& line = cells.emplace_back();
      for (const auto& [key, value] : row.items()) line.push_back(text(value));
    }
    std::vector<size_t> widths(cells[0].size());
    for (const auto& line : cells) {
      for (size_t c = 0; c < line.size() && c < widths.size(); ++c)
        widths[c] = std::max(widths[c], line[c].size());
    }
    for (const auto& line : cells) {
      for (size_t c = 0; c < line.size() && c < widths.size(); ++c) {
        const int width = static_cast<int>(widths[c]);
        std::printf("%*s", c == 0 ? -width : width + 2, line[c].c_str());
      }
      std::printf("\n");
    }
  }

  std::string name_;
  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
};

}  // namespace phalanx::bench
