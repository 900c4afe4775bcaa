// How long a schedule takes: a simulation in which messages take no time.
#pragma once

#include <vector>

#include "phalanx/base/function_ref.h"
#include "phalanx/parallel/schedule/schedule.h"

namespace phalanx {

/// When a step runs, in the unit of the StepTimes.
struct StepSpan {
  double start = 0;
  double end = 0;
};

struct Timeline {
  double makespan = 0;
  std::vector<double> idle;                  ///< by rank: makespan less the time of its steps
  std::vector<int> peak_live;                ///< by rank, see peak_live in check.h
  std::vector<int> peak_kept;                ///< by rank
  std::vector<std::vector<StepSpan>> spans;  ///< by rank and step

  /// The part of a rank's idle time that lies between its first and its last step.
  double idle_within(int rank) const;
};

/// Every step starts as soon as its rank is free and what it needs is there. `times` are those of one chunk
/// and a whole microbatch. Error: steps that never can; it names them (check.h says more).
Timeline simulate(const Schedule& schedule, const StepTimes& times = {});
/// The same with a time for every single step: of a rank, and by its place in the rank's list.
Timeline simulate(const Schedule& schedule, FunctionRef<double(int rank, size_t step)> time);

}  // namespace phalanx
