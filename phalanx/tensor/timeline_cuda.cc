#include <algorithm>
#include <utility>

#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/stream.h"
#include "phalanx/tensor/stream_wait.h"
#include "phalanx/tensor/timeline.h"

namespace phalanx::cuda {

namespace {
thread_local Timeline* current = nullptr;
}

Timeline* timeline() { return current; }
Timeline* set_timeline(Timeline* timeline) { return std::exchange(current, timeline); }

Timeline::Timeline()
    : device_(current_stream().device().index), lanes_{current_stream().native()}, begin_ns_(trace_now()) {}

Timeline::~Timeline() {
  for (const Mark& mark : marks_) (void)cudaEventDestroy(mark.event);
  for (CUevent_st* event : unused_) (void)cudaEventDestroy(event);
}

size_t Timeline::lane_of(CUstream_st* stream) {
  const auto lane = static_cast<size_t>(std::ranges::find(lanes_, stream) - lanes_.begin());
  if (lane == lanes_.size()) lanes_.push_back(stream);
  return lane;
}

CUevent_st* Timeline::record(CUstream_st* stream) {
  CUevent_st* event = nullptr;
  if (unused_.empty()) {
    check(cudaEventCreate(&event), "cudaEventCreate");
  } else {
    event = unused_.back();
    unused_.pop_back();
  }
  check(cudaEventRecord(event, stream), "cudaEventRecord");
  return event;
}

void Timeline::mark(const Stream& stream, std::string_view op) {
  TraceRing* const ring = trace_ring();
  if (!ring || stream.device().index != device_) return;
  const size_t lane = lane_of(stream.native());
  CUevent_st* const event = record(stream.native());
  marks_.push_back({lane, ring->keep(op), ring->label(), trace_now(), event});
}

void Timeline::wait_for_all() const {
  std::vector<bool> waited(lanes_.size());
  for (auto mark = marks_.rbegin(); mark != marks_.rend(); ++mark) {
    if (waited[mark->lane]) continue;
    wait_for(mark->event, "a kernel or copy failed");
    waited[mark->lane] = true;
  }
}

std::vector<Span> Timeline::take() {
  wait_for_all();
  CUevent_st* const now = record(lanes_.front());
  wait_for(now, "a kernel or copy failed");
  const int64_t now_ns = trace_now();
  std::vector<Span> spans;
  std::vector<int64_t> done(lanes_.size(), begin_ns_);  // what came before, by lane
  int64_t host = begin_ns_;
  for (const Mark& mark : marks_) {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, mark.event, now), "cudaEventElapsedTime");
    const int64_t end = now_ns - static_cast<int64_t>(1e6 * static_cast<double>(ms));
    if (*mark.op != 0) {
      spans.push_back({.name = mark.op,
                       .begin_ns = std::min(end, std::max(done[mark.lane], host)),
                       .end_ns = end,
                       .row = TraceRow::device,
                       .of = mark.of,
                       .lane = static_cast<int>(mark.lane)});
    }
    done[mark.lane] = end;
    host = mark.queued_ns;
    unused_.push_back(mark.event);
  }
  unused_.push_back(now);
  marks_.clear();
  begin_ns_ = now_ns;
  return spans;
}

}  // namespace phalanx::cuda
