// 1F1B with a flush (PipeDream-flush, Narayanan et al. 2020, arXiv:2006.09503; Megatron-LM's default): a rank
// goes P - 1 - r microbatches forward, then one forward and one backward in turn, then backward.
// Idle on every rank: (P - 1)(F + B), for any M. Peak: min(P - r, M). Parameters: once.
#include <algorithm>

#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

Steps build(const ScheduleShape& shape, int rank) {
  const int microbatches = shape.microbatches;
  const int warmup = std::min(shape.ranks - 1 - rank, microbatches);
  Steps s;
  for (int m = 0; m < warmup; ++m) s.push_back({StepOp::F, 0, m});
  for (int m = warmup; m < microbatches; ++m) {
    s.push_back({StepOp::F, 0, m});
    s.push_back({StepOp::B, 0, m - warmup});
  }
  for (int m = microbatches - warmup; m < microbatches; ++m) s.push_back({StepOp::B, 0, m});
  return s;
}

double bubble(const ScheduleShape& shape, const StepTimes& t) { return (shape.ranks - 1) * (t.F + t.B); }

int peak(const ScheduleShape& shape, int rank) { return std::min(shape.ranks - rank, shape.microbatches); }

}  // namespace

constinit const ScheduleEntry k1f1b = {.name = "1f1b",
                                       .summary = "one forward, one backward in turn",
                                       .build = build,
                                       .bubble = bubble,
                                       .peak = peak};

}  // namespace phalanx
