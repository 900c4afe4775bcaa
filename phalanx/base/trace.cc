#include "phalanx/base/trace.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "phalanx/base/text.h"

namespace phalanx {
namespace {

thread_local TraceRing* current = nullptr;

// Chrome's unit is the microsecond.
double microseconds(int64_t ns) { return static_cast<double>(ns) * 1e-3; }

}  // namespace

std::vector<Span> TraceRing::spans() const {
  const uint64_t n = std::min<uint64_t>(count_, spans_.size());
  std::vector<Span> out;
  out.reserve(n);
  for (uint64_t i = count_ - n; i < count_; ++i) out.push_back(spans_[i % spans_.size()]);
  return out;
}

TraceRing* trace_ring() { return current; }

TraceScope::TraceScope(TraceRing* ring) : previous_(current) { current = ring; }
TraceScope::~TraceScope() { current = previous_; }

int64_t trace_now() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

std::string chrome_trace(std::span<const TraceRing* const> rings) {
  int64_t start = std::numeric_limits<int64_t>::max();
  for (const TraceRing* ring : rings) {
    for (const Span& s : ring->spans()) start = std::min(start, s.begin_ns);
  }
  std::string out = "{\"displayTimeUnit\": \"ns\", \"traceEvents\": [";
  const auto name = [&out](const char* what, size_t rank, int row, const std::string& text) {
    out += format(
        "{}\n{{\"ph\": \"M\", \"name\": \"{}\", \"pid\": {}, \"tid\": {}, \"args\": "
        "{{\"name\": \"{}\"}}}}",
        out.back() == '[' ? "" : ",", what, rank, row, text);
  };
  for (size_t rank = 0; rank < rings.size(); ++rank) {
    name("process_name", rank, 0, format("rank {}", rank));
    name("thread_name", rank, static_cast<int>(TraceRow::compute), "compute");
    name("thread_name", rank, static_cast<int>(TraceRow::comm), "communication");
    for (const Span& s : rings[rank]->spans()) {
      out += format(
          ",\n{{\"ph\": \"X\", \"name\": \"{}\", \"pid\": {}, \"tid\": {}, \"ts\": {:.3f}, "
          "\"dur\": {:.3f}, \"args\": {{\"detail\": {}}}}}",
          s.name, rank, static_cast<int>(s.row), microseconds(s.begin_ns - start),
          microseconds(s.end_ns - s.begin_ns), s.detail);
    }
  }
  return out + "\n]}\n";
}

}  // namespace phalanx
