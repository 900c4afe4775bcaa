// 1F1B with a flush (PipeDream-flush, Narayanan et al. 2020, arXiv:2006.09503; Megatron-LM's default): a rank
// goes P - 1 - r microbatches forward, then one forward and one backward in turn, then backward.
// Of n slices a microbatch (Seq1F1B, Ao et al. 2024) it takes turns by slice, and goes n - 1 slices further
// forward first: a microbatch goes back from its last one on.
// Idle on every rank: (P - 1)(F + B), those of a slice, for any M. Peak: min(P - r + n - 1, M n) slices.
// Parameters: once.
#include <algorithm>

#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

Steps build(const ScheduleShape& shape, int rank) {
  const int slices = shape.microbatches * shape.slices;
  const int warmup = std::min(shape.ranks - 1 - rank + shape.slices - 1, slices);
  Steps s;
  const auto backward = [&](int i) { s.push_back({StepOp::B, 0, backward_slice(i, shape.slices)}); };
  for (int i = 0; i < warmup; ++i) s.push_back({StepOp::F, 0, i});
  for (int i = warmup; i < slices; ++i) {
    s.push_back({StepOp::F, 0, i});
    backward(i - warmup);
  }
  for (int i = slices - warmup; i < slices; ++i) backward(i);
  return s;
}

double bubble(const ScheduleShape& shape, const StepTimes& t) { return (shape.ranks - 1) * (t.F + t.B); }

int peak(const ScheduleShape& shape, int rank) {
  return std::min(shape.ranks - rank + shape.slices - 1, shape.microbatches * shape.slices);
}

}  // namespace

constinit const ScheduleEntry k1f1b = {.name = "1f1b",
                                       .summary = "one forward, one backward in turn",
                                       .knows_slices = true,
                                       .build = build,
                                       .bubble = bubble,
                                       .peak = peak};

}  // namespace phalanx
