// GPipe (Huang et al. 2019, arXiv:1811.06965): all forwards, then all backwards.
// Idle on every rank: (P - 1)(F + B), for any M. Peak: M. Parameters: once.
#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

Steps build(const ScheduleShape& shape, int /*rank*/) {
  Steps s;
  for (int m = 0; m < shape.microbatches; ++m) s.push_back({StepOp::F, 0, m});
  for (int m = 0; m < shape.microbatches; ++m) s.push_back({StepOp::B, 0, m});
  return s;
}

double bubble(const ScheduleShape& shape, const StepTimes& t) { return (shape.ranks - 1) * (t.F + t.B); }

int peak(const ScheduleShape& shape, int /*rank*/) { return shape.microbatches; }

}  // namespace

constinit const ScheduleEntry kGpipe = {.name = "gpipe",
                                        .summary = "all forwards, then all backwards",
                                        .build = build,
                                        .bubble = bubble,
                                        .peak = peak};

}  // namespace phalanx
