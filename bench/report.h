// What every benchmark prints: tables for people, and the same rows as JSON for programs.
#pragma once

#include <algorithm>
#include <cmath>
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

/// Rows are objects: {"shape": "…", "ms": 1.2}. Neighbours of equal keys make one table. Numbers are printed
/// with three significant digits or as integers; null as nothing; a column that is null in all rows of its
/// table is left out of it.
class Report {
 public:
  explicit Report(std::string name) : name_(std::move(name)) {}

  void add(nlohmann::ordered_json row) { rows_.push_back(std::move(row)); }

  /// For people.
  std::string text() const {
    std::string out = name_ + " on " + machine() + "\n";
    for (size_t begin = 0; begin < rows_.size();) {
      size_t end = begin + 1;
      while (end < rows_.size() && keys(rows_[end]) == keys(rows_[begin])) ++end;
      if (begin > 0) out += "\n";
      out += table(begin, end);
      begin = end;
    }
    return out;
  }
  /// {"name", "machine", "rows": […]}.
  std::string json() const {
    return nlohmann::ordered_json{{"name", name_}, {"machine", machine()}, {"rows", rows_}}.dump(1) + "\n";
  }
  /// False when the file cannot be written.
  bool write_json(const std::string& file) const {
    std::ofstream out(file);
    out << json();
    return static_cast<bool>(out.flush());
  }

  /// Prints the tables; arguments are those of main, of which `--json FILE` is understood. Gives the exit
  /// status.
  int finish(std::span<char*> arguments) const {
    std::printf("%s", text().c_str());
    for (size_t i = 1; i + 1 < arguments.size(); ++i) {
      if (std::string_view(arguments[i]) != "--json" || write_json(arguments[i + 1])) continue;
      std::fprintf(stderr, "cannot write %s\n", arguments[i + 1]);
      return 1;
    }
    return 0;
  }

 private:
  using Cells = std::vector<std::string>;

  static Cells keys(const nlohmann::ordered_json& row) {
    Cells keys;
    for (const auto& [key, value] : row.items()) keys.push_back(key);
    return keys;
  }

  static std::string cell(const nlohmann::ordered_json& value) {
    if (value.is_null()) return "";
    if (value.is_string()) return value.get<std::string>();
    if (!value.is_number_float()) return value.dump();
    char buffer[32];
    const auto v = value.get<double>();
    const double size = std::abs(v);
    const int decimals = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
    std::snprintf(buffer, sizeof buffer, "%.*f", decimals, v);
    return buffer;
  }

  // Characters on the screen, where "µ" and "×" are one.
  static size_t width(const std::string& text) {
    return static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
  }

  // Rows [begin, end) below their keys, which are those of the first.
  std::string table(size_t begin, size_t end) const {
    std::vector<Cells> lines(1 + end - begin);
    for (const std::string& key : keys(rows_[begin])) {
      bool any = false;
      for (size_t r = begin; r < end; ++r) any = any || !rows_[r][key].is_null();
      if (!any) continue;
      lines[0].push_back(key);
      for (size_t r = begin; r < end; ++r) lines[1 + r - begin].push_back(cell(rows_[r][key]));
    }
    std::vector<size_t> widths(lines[0].size());
    for (const Cells& line : lines) {
      for (size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], width(line[c]));
    }
    std::string out;
    for (const Cells& line : lines) {
      for (size_t c = 0; c < line.size(); ++c) {
        const std::string pad(widths[c] - width(line[c]), ' ');
        out += c == 0 ? line[c] + pad : "  " + pad + line[c];
      }
      out += "\n";
    }
    return out;
  }

  std::string name_;
  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
};

}  // namespace phalanx::bench
