#include "phalanx/base/chrome_trace.h"

#include <algorithm>
#include <set>
#include <vector>

#include "phalanx/base/text.h"

namespace phalanx {
namespace {

// Chrome's unit is the microsecond.
double microseconds(int64_t ns) { return static_cast<double>(ns) * 1e-3; }

void append(std::string& text, std::string_view word) {
  if (word.empty()) return;
  if (!text.empty()) text += ' ';
  text += word;
}

std::string label_text(const TraceLabel& label) {
  std::string text = label.unit;
  append(text, label.part);
  if (label.phase >= TracePhase::forward && label.phase <= TracePhase::again && !text.empty()) {
    append(text, phase_name(label.phase));
  }
  if (label.microbatch >= 0) append(text, format("m{}", label.microbatch));
  return text;
}

std::string_view category(const Span& s) {
  if (s.row == TraceRow::comm) return "communication";
  if (s.of.phase != TracePhase::none) return phase_name(s.of.phase);
  return s.kind == TraceKind::part ? "part" : "op";
}

std::string arguments(const Span& s) {
  if (s.chunk >= 0)
    return format("\"op\": \"{}\", \"microbatch\": {}, \"chunk\": {}", s.name, s.of.microbatch, s.chunk);
  if (s.row == TraceRow::comm) {
    return format("\"group\": \"{}\", \"sent\": {}, \"received\": {}, \"waited_us\": {:.3f}", s.group, s.sent,
                  s.received, microseconds(s.waited_ns));
  }
  const bool counts_nothing = s.kind == TraceKind::part || s.kind == TraceKind::communication;
  if (counts_nothing || s.row == TraceRow::device) return "";
  const bool counts_operations = s.kind == TraceKind::product || s.kind == TraceKind::attention;
  return format("\"{}\": {}", counts_operations ? "operations" : "bytes", s.detail);
}

// Writes one rank's events.
class Writer {
 public:
  explicit Writer(const ChromeRank& rank) : rank_(rank) {}

  void name_row(int64_t row, std::string_view suffix) {
    add(format(R"({{"ph": "M", "name": "thread_name", "pid": 0, "tid": {}, "args": {{"name": "{}{}"}}}})",
               thread(row), rank_.name, suffix));
    add(format(
        R"({{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": {}, "args": {{"sort_index": {}}}}})",
        thread(row), rank_.rank * kMostRows + std::min(row, kMostRows - 1)));
  }

  void span(const Span& s, int64_t row) {
    add(format(R"({{"ph": "X", "cat": "{}", "name": "{}", "pid": 0, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, )"
               R"("args": {{{}}}}})",
               category(s), span_text(s), thread(row), time(s.begin_ns), microseconds(s.end_ns - s.begin_ns),
               arguments(s)));
    if (s.row != TraceRow::comm || s.message == 0) return;
    if (s.sent > 0 && s.received == 0) flow("s", "", s.message, row, s.begin_ns);
    if (s.received > 0 && s.sent == 0) flow("f", R"("bp": "e", )", s.message, row, s.end_ns);
  }

  std::string take() { return std::move(out_); }

 private:
  static constexpr int64_t kMostRows = 1024;  // of a rank, in the viewer's order

  int64_t thread(int64_t row) const { return rank_.rank + row * kChromeRow; }
  double time(int64_t ns) const { return microseconds(ns + rank_.shift_ns); }
  void add(std::string_view event) {
    if (!out_.empty()) out_ += ",\n";
    out_ += event;
  }
  void flow(std::string_view ph, std::string_view binding, uint64_t message, int64_t row, int64_t ns) {
    add(format(R"({{"ph": "{}", {}"cat": "message", "name": "message", "id": "{:#x}", )"
               R"("pid": 0, "tid": {}, "ts": {:.3f}}})",
               ph, binding, message, thread(row), time(ns)));
  }

  const ChromeRank& rank_;
  std::string out_;
};

// The first row whose last operation has ended.
size_t free_row(std::vector<int64_t>& ends, const Span& s) {
  const auto found = std::ranges::find_if(ends, [&](int64_t end) { return end <= s.begin_ns; });
  const auto row = static_cast<size_t>(found - ends.begin());
  if (found == ends.end()) ends.push_back(0);
  ends[row] = s.end_ns;
  return row;
}

}  // namespace

std::string span_text(const Span& s) {
  std::string text = s.name;
  if (s.row != TraceRow::comm && s.kind == TraceKind::communication)
    text = format("wait for {}", s.collective);
  append(text, s.group);
  append(text, label_text(s.of));
  if (s.chunk >= 0) text += format(" chunk {}", s.chunk);
  return text;
}

std::string chrome_events(std::span<const Span> spans, const ChromeRank& rank) {
  std::vector<Span> sorted(spans.begin(), spans.end());
  std::ranges::sort(sorted, [](const Span& a, const Span& b) {
    if (a.begin_ns != b.begin_ns) return a.begin_ns < b.begin_ns;
    if (a.end_ns != b.end_ns) return a.end_ns > b.end_ns;
    return a.chunk > b.chunk;
  });
  Writer out(rank);
  out.name_row(0, "");
  const bool pairs = std::ranges::find(sorted, TraceRow::beside, &Span::row) != sorted.end();
  if (pairs) out.name_row(1, ", " + rank.beside);
  std::vector<int64_t> ends;  // of the operations, by row
  std::set<int> lanes;        // of the GPU
  for (const Span& s : sorted) {
    if (s.row == TraceRow::device) {
      const int64_t row = kChromeDeviceRow + s.lane;
      if (lanes.insert(s.lane).second) out.name_row(row, format(", GPU stream {}", s.lane));
      out.span(s, row);
      continue;
    }
    if (s.row != TraceRow::comm) {
      out.span(s, s.row == TraceRow::beside ? 1 : 0);
      continue;
    }
    const size_t known = ends.size();
    const size_t row = free_row(ends, s);
    if (row == known) out.name_row(static_cast<int64_t>(row) + 2, ", in flight");
    out.span(s, static_cast<int64_t>(row) + 2);
  }
  return out.take();
}

std::string chrome_trace(std::span<const std::string> events_of_ranks) {
  std::string out = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  out += R"({"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "job"}})";
  for (const std::string& events : events_of_ranks) out += (events.empty() ? "" : ",\n") + events;
  return out + "\n]}\n";
}

}  // namespace phalanx
