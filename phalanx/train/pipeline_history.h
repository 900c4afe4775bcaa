// What the steps of a pipeline took: kept by every rank while it trains, one step of it told at the end.
#pragma once

#include <optional>
#include <vector>

#include "phalanx/comm/mesh.h"
#include "phalanx/parallel/pipeline.h"
#include "phalanx/parallel/schedule/simulate.h"

namespace phalanx {

/// One training step on the ranks of one pipeline.
struct PipelineRecord {
  int64_t step = 0;  ///< of the run, from 0
  Schedule schedule;
  std::vector<std::vector<TimedStep>> ranks;  ///< by rank of pp; each in the order of its list
};

/// Bubbles of a step, in seconds, beside what the schedule promises.
struct Bubble {
  StepTimes mean;  ///< of a chunk and a whole microbatch, over all ranks; FB of a schedule without: F + B
  double makespan = 0;   ///< from the first step of any rank to the end of the last one
  double measured = 0;   ///< makespan less the time of its steps, of the worst rank
  double simulated = 0;  ///< the same if every step took what it took, and messages nothing
  double formula = 0;    ///< of the schedule (bubble_formula), with `mean`
};
/// `record` has all steps of its schedule, which has a backward.
Bubble bubble_of(const PipelineRecord& record);

/// The last steps of a run, as one rank ran them.
class PipelineHistory {
 public:
  void add(int64_t step, double seconds, const std::vector<TimedStep>& records);
  /// Of the steps kept the one that took rank 0 of `pp` the median time; nothing before the first step. On
  /// the other ranks nothing. Collective over pp. `clock_shift`: see comm/clock_shift.h.
  std::optional<PipelineRecord> median(const Schedule& schedule, Group& pp, int64_t clock_shift) const;

 private:
  static constexpr size_t kKept = 15;
  struct Kept {
    int64_t step = 0;
    double seconds = 0;
    std::vector<TimedStep> records;
  };
  std::vector<Kept> kept_;  // a ring
  size_t added_ = 0;
};

}  // namespace phalanx
