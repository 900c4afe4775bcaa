// ZB-H1 (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", arXiv:2401.10241, section 2.3): 1F1B with the
// weight gradients W split off, each put off by r microbatches on rank r, where they fill the end.
//
// Of n slices a microbatch it goes on by slices, n - 1 of them further ahead, as 1f1b does; F, B, W and the
// idle time are then those of a slice, and the least M is such that M n >= P + n - 1.
//
// Idle on every rank: (P - 1)(F + B - 2W) for M >= P, as long as W <= F and W <= B - W. With fewer
// microbatches there are not enough W: (P - 1)(F + B - W) - (M - 1)W. Peak, from F to I, as 1F1B:
// min(P - r, M). What W still needs is kept from F to W: of min(P, M) microbatches on any rank. Parameters:
// once.
#include <algorithm>

#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

int slices_of(const ScheduleShape& shape) { return shape.microbatches * shape.slices; }

Steps build(const ScheduleShape& shape, int rank) {
  const int slices = slices_of(shape);
  const int ahead = shape.ranks - rank + shape.slices - 1;  // of the backward
  Steps s;
  const auto back = [&](StepOp op, int i) { s.push_back({op, 0, backward_slice(i, shape.slices)}); };
  for (int i = 0; i < std::min(ahead, slices); ++i) s.push_back({StepOp::F, 0, i});
  for (int i = 0; i < slices; ++i) {
    back(StepOp::I, i);
    if (i >= rank) back(StepOp::W, i - rank);
    if (i + ahead < slices) s.push_back({StepOp::F, 0, i + ahead});
  }
  for (int i = std::max(0, slices - rank); i < slices; ++i) back(StepOp::W, i);
  return s;
}

double bubble(const ScheduleShape& shape, const StepTimes& t) {
  const int filled = std::min(shape.ranks, slices_of(shape) - shape.slices + 1) - 1;
  return (shape.ranks - 1) * (t.F + t.B - t.W) - filled * t.W;
}

int peak(const ScheduleShape& shape, int rank) {
  return std::min(shape.ranks - rank + shape.slices - 1, slices_of(shape));
}

}  // namespace

constinit const ScheduleEntry kZbH1 = {.name = "zb-h1",
                                       .summary = "1f1b with weight gradients put off to fill the end",
                                       .knows_slices = true,
                                       .build = build,
                                       .bubble = bubble,
                                       .peak = peak};

}  // namespace phalanx
