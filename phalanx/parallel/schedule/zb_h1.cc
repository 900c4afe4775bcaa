// ZB-H1 (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", arXiv:2401.10241, section 2.3): 1F1B with the
// weight gradients W split off, each put off by r microbatches on rank r, where they fill the end.
//
// Idle on every rank: (P - 1)(F + B - 2W) for M >= P, as long as W <= F and W <= B - W. With fewer
// microbatches there are not enough W: (P - 1)(F + B - W) - (M - 1)W. Peak, from F to I, as 1F1B:
// min(P - r, M). What W still needs is kept from F to W: of min(P, M) microbatches on any rank. Parameters:
// once.
#include <algorithm>

#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

Steps build(const ScheduleShape& shape, int rank) {
  const int ahead = shape.ranks - rank;  // of the backward
  Steps s;
  for (int m = 0; m < std::min(ahead, shape.microbatches); ++m) s.push_back({StepOp::F, 0, m});
  for (int m = 0; m < shape.microbatches; ++m) {
    s.push_back({StepOp::I, 0, m});
    if (m >= rank) s.push_back({StepOp::W, 0, m - rank});
    if (m + ahead < shape.microbatches) s.push_back({StepOp::F, 0, m + ahead});
  }
  for (int m = std::max(0, shape.microbatches - rank); m < shape.microbatches; ++m) {
    s.push_back({StepOp::W, 0, m});
  }
  return s;
}

double bubble(const ScheduleShape& shape, const StepTimes& t) {
  const int filled = std::min(shape.ranks, shape.microbatches) - 1;
  return (shape.ranks - 1) * (t.F + t.B - t.W) - filled * t.W;
}

int peak(const ScheduleShape& shape, int rank) { return std::min(shape.ranks - rank, shape.microbatches); }

}  // namespace

constinit const ScheduleEntry kZbH1 = {.name = "zb-h1",
                                       .summary = "1f1b with weight gradients put off to fill the end",
                                       .build = build,
                                       .bubble = bubble,
                                       .peak = peak};

}  // namespace phalanx
