#include "phalanx/train/trace_summary.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "phalanx/base/chrome_trace.h"
#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/base/units.h"

namespace phalanx {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kLargestTrace = uint64_t{4} << 30;
constexpr double kSecond = 1e6;  // in Chrome's unit

struct Interval {
  double begin = std::numeric_limits<double>::infinity();
  double end = -std::numeric_limits<double>::infinity();
  void cover(double from, double to) {
    begin = std::min(begin, from);
    end = std::max(end, to);
  }
};

struct RankSummary {
  std::string name;
  double seconds = 0;
  std::map<std::string, double> parts;
  double bubble = 0;
  int64_t operations = 0;
  int64_t sent = 0;
  int64_t received = 0;
  std::vector<double> busy;  // with steps of the pipeline, by training step
};

// Sums up the spans of one row, which come outer before inner: a stack of those that are open.
class Row {
 public:
  explicit Row(std::map<std::string, double>& parts) : parts_(parts) {}

  void add(const std::string& category, double begin, double end) {
    close_until(begin);
    std::string part = category;
    const std::string outer = open_.empty() ? "other" : open_.back().part;
    if (category == "op" || category == "part") part = outer;
    if (outer == phase_name(TracePhase::overlap) && category != phase_name(TracePhase::wait)) part = outer;
    open_.push_back({part, end});
  }
  void close_until(double time) {
    while (!open_.empty()) {
      const double upto = std::min(time, open_.back().end);
      if (upto > now_) parts_[open_.back().part] += (upto - now_) / kSecond;
      now_ = std::max(now_, upto);
      if (open_.back().end > time) return;
      open_.pop_back();
    }
    now_ = time;
  }

 private:
  struct Open {
    std::string part;
    double end;
  };
  std::map<std::string, double>& parts_;
  std::vector<Open> open_;
  double now_ = 0;
};

struct Summary {
  std::vector<std::string> steps;
  std::map<int64_t, RankSummary> ranks;
};

// Reads the events of all ranks, one after the other and each in order of time.
class Reader {
 public:
  Summary read(const Json& events) {
    for (const Json& e : events) {
      if (e.at("ph") == "X") span(e);
      if (e.at("ph") == "M" && e.at("name") == "thread_name") name(e);
    }
    for (auto& [rank, row] : rows_) row.close_until(std::numeric_limits<double>::infinity());
    for (auto& [rank, r] : out_.ranks) {
      for (size_t s = 0; s < r.busy.size(); ++s) {
        if (r.busy[s] > 0) r.bubble += (pipelines_[s].end - pipelines_[s].begin) / kSecond - r.busy[s];
      }
    }
    return std::move(out_);
  }

 private:
  void name(const Json& e) {
    const auto thread = e.at("tid").get<int64_t>();
    if (thread < kChromeRow) out_.ranks[thread].name = e.at("args").at("name");
  }

  void span(const Json& e) {
    const auto thread = e.at("tid").get<int64_t>();
    RankSummary& rank = out_.ranks[thread % kChromeRow];
    const std::string category = e.at("cat");
    const double begin = e.at("ts");
    const double end = begin + e.at("dur").get<double>();
    if (thread < kChromeRow) {
      rows_.try_emplace(thread, rank.parts).first->second.add(category, begin, end);
      if (category == "part") start_step(rank, e.at("name"), end - begin);
      if (e.at("args").contains("op") && !rank.busy.empty()) {
        rank.busy.back() += (end - begin) / kSecond;
        pipelines_[rank.busy.size() - 1].cover(begin, end);
      }
    } else if (category == "communication") {
      ++rank.operations;
      rank.sent += e.at("args").at("sent").get<int64_t>();
      rank.received += e.at("args").at("received").get<int64_t>();
    }
  }

  void start_step(RankSummary& rank, const std::string& name, double microseconds) {
    rank.seconds += microseconds / kSecond;
    rank.busy.push_back(0);
    if (out_.steps.size() >= rank.busy.size()) return;
    out_.steps.push_back(name);
    pipelines_.emplace_back();
  }

  Summary out_;
  std::map<int64_t, Row> rows_;
  std::vector<Interval> pipelines_;  // by training step
};

std::string json_text(const std::filesystem::path& path, const Summary& summary) {
  Json ranks = Json::array();
  for (const auto& [rank, r] : summary.ranks) {
    ranks.push_back({{"rank", rank},
                     {"name", r.name},
                     {"seconds", r.seconds},
                     {"parts", r.parts},
                     {"bubble", r.bubble},
                     {"operations", r.operations},
                     {"sent", r.sent},
                     {"received", r.received}});
  }
  const Json all = {{"kind", "trace"}, {"path", path.string()}, {"steps", summary.steps}, {"ranks", ranks}};
  return all.dump(1) + "\n";
}

std::string table(const std::filesystem::path& path, const Summary& summary) {
  const bool any = !summary.steps.empty();
  std::string text = format("trace {}\n  ranks: {}\n  steps: {}{}\n", path.string(), summary.ranks.size(),
                            summary.steps.size(),
                            any ? format(", {} to {}", summary.steps.front(), summary.steps.back()) : "");
  for (const auto& entry : summary.ranks) {
    const RankSummary& r = entry.second;
    text += format("\n{}\n", r.name);
    const auto line = [&](const std::string& name, double seconds) {
      text += format("  {:<32}{:>10.6f} s {:>6.1f} %\n", name, seconds,
                     r.seconds > 0 ? 100 * seconds / r.seconds : 0);
    };
    for (const auto& [part, seconds] : r.parts) line(part, seconds);
    line("all", r.seconds);
    line("bubble (within the above)", r.bubble);
    text +=
        format("  {} operations in flight, sent {}, received {}\n", r.operations,
               human_bytes(static_cast<uint64_t>(r.sent)), human_bytes(static_cast<uint64_t>(r.received)));
  }
  return text;
}

}  // namespace

bool is_trace(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string begin(256, '\0');
  file.read(begin.data(), static_cast<std::streamsize>(begin.size()));
  return begin.starts_with('{') && begin.find("\"traceEvents\"") != std::string::npos;
}

std::string trace_summary(const std::filesystem::path& path, bool json) {
  const std::string text = read_text(path, kLargestTrace);
  try {
    const Summary summary = Reader().read(Json::parse(text).at("traceEvents"));
    return json ? json_text(path, summary) : table(path, summary);
  } catch (const Json::exception& e) {
    throw Error("{}: not a trace of Phalanx: {}", path.string(), e.what());
  }
}

}  // namespace phalanx
