// One microbatch at a time: F0 B0 F1 B1 … What one rank does to accumulate gradients; on a pipeline one rank
// works at a time, and nothing takes less memory.
// Idle on every rank: M (P - 1)(F + B). Peak: 1. Parameters: once.
#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

Steps build(const ScheduleShape& shape, int /*rank*/) {
  Steps s;
  for (int m = 0; m < shape.microbatches; ++m) {
    s.push_back({StepOp::F, 0, m});
    s.push_back({StepOp::B, 0, m});
  }
  return s;
}

double bubble(const ScheduleShape& shape, const StepTimes& t) {
  return shape.microbatches * (shape.ranks - 1) * (t.F + t.B);
}

int peak(const ScheduleShape& /*shape*/, int /*rank*/) { return 1; }

}  // namespace

constinit const ScheduleEntry kSequential = {.name = "sequential",
                                             .summary = "one microbatch at a time",
                                             .build = build,
                                             .bubble = bubble,
                                             .peak = peak};

}  // namespace phalanx
