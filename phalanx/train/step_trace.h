// The training timeline: some steps of a run as Chrome trace events of all ranks.
#pragma once

#include <memory>
#include <string>

#include "phalanx/base/chrome_trace.h"
#include "phalanx/base/trace.h"
#include "phalanx/comm/mesh.h"
#include "phalanx/tensor/device_trace.h"

namespace phalanx {

/// Steps of one run, counted from its first, also when it was resumed.
struct TraceSteps {
  int64_t first = 2;  ///< steps before them, in which memory and caches warm up
  int64_t count = 0;  ///< 0: none

  bool has(int64_t step) const { return step >= first && step < first + count; }
  bool ends_with(int64_t step) const { return count > 0 && step == first + count - 1; }
};

/// One rank's part. Takes no memory before the first of the steps.
class StepTrace {
 public:
  /// `clock_shift` is what comm/clock_shift.h says.
  StepTrace(const TraceSteps& steps, int64_t clock_shift, Device device = kCpu)
      : steps_(steps), clock_shift_(clock_shift), device_(device) {}

  /// While it lives the calling thread leaves its spans, and its GPU's, for the run's step of that number; of
  /// one that is not traced nobody does.
  class Scope {
   public:
    Scope(StepTrace& trace, int64_t step);

   private:
    TraceScope host_;
    DeviceTraceScope device_;
  };

  /// On rank 0 the whole file, elsewhere "". Collective; once.
  std::string collect(const Mesh& mesh, Group& world);
  /// True once the steps have begun and until they were collected, or when they never came.
  bool is_due() const { return steps_.count > 0; }
  /// Of the thread's spans those that did not fit, when it was collected: the oldest.
  uint64_t lost() const { return lost_; }

 private:
  TraceRing& ring();

  TraceSteps steps_;
  int64_t clock_shift_;
  Device device_;
  std::unique_ptr<TraceRing> ring_;
  std::unique_ptr<DeviceTrace> on_device_;
  uint64_t lost_ = 0;
};

/// On rank 0 the whole file of what all ranks' spans are, elsewhere "". rank.shift_ns is what
/// comm/clock_shift.h says; times begin at the first span's. Collective.
std::string gather_trace(std::span<const Span> spans, ChromeRank rank, Group& world);

/// "rank 3 pp=1 dp=0": its place on the axes that the layout has.
std::string rank_title(const Mesh& mesh);

}  // namespace phalanx
