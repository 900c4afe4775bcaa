// ZB-V (Qi et al. 2023, arXiv:2401.10241, section 6; the V-shaped placement of "Pipeline Parallelism with
// Controllable Memory", Qi et al. 2024, arXiv:2405.15362): two chunks a rank, stages r and 2P - 1 - r, so
// that a microbatch turns round on the last rank and backward starts where forward did.
//
// With F = I = W and M >= 2P - 1, no rank is idle between its first and its last step; rank r starts after r
// forwards, so that each is idle for (P - 1)F in all. Fewer microbatches are run as if there were 2P - 1,
// without the steps of those that do not exist: (4P - 2 - 2M)F. Peak: 2P chunk activations, those of P whole
// stages, from F to I and from F to W; with fewer microbatches min(M, 2P - 1 - r) + min(M, r + 1).
// Parameters: once.
#include <algorithm>
#include <array>

#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

// Counts microbatches up by itself; leaves out those that do not exist.
class List {
 public:
  explicit List(int microbatches) : microbatches_(microbatches) {}
  void add(StepOp op, int chunk) {
    const int m = count(op, chunk)++;
    if (m < microbatches_) steps_.push_back({op, chunk, m});
  }
  int& count(StepOp op, int chunk) { return counts_[static_cast<size_t>(op)][static_cast<size_t>(chunk)]; }
  Steps take() { return std::move(steps_); }

 private:
  int microbatches_;
  std::array<std::array<int, 2>, 5> counts_{};
  Steps steps_;
};

Steps build(const ScheduleShape& shape, int rank) {
  using enum StepOp;
  const int places = std::max(shape.microbatches, 2 * shape.ranks - 1);
  const int inward = shape.ranks - rank;
  List s(shape.microbatches);
  const auto turn_of_chunk_1 = [&s] {
    for (const StepOp op : {F, I, W}) s.add(op, 1);
  };
  for (int i = 0; i < 2 * inward - 1; ++i) s.add(F, 0);
  for (int i = 0; i < rank; ++i) {
    s.add(F, 1);
    s.add(F, 0);
  }
  for (int i = 0; i < inward; ++i) turn_of_chunk_1();
  while (s.count(F, 1) < places) {
    if (s.count(F, 0) < places) s.add(F, 0);
    s.add(I, 0);
    s.add(W, 0);
    turn_of_chunk_1();
  }
  for (int i = 0; i < rank; ++i) {
    s.add(I, 0);
    s.add(I, 1);
  }
  for (int i = 0; i < inward; ++i) {
    s.add(I, 0);
    s.add(W, 0);
  }
  for (const int chunk : {1, 0}) {
    while (s.count(W, chunk) < places) s.add(W, chunk);
  }
  return s.take();
}

double bubble(const ScheduleShape& shape, const StepTimes& t) {
  return std::max(shape.ranks - 1, 4 * shape.ranks - 2 - 2 * shape.microbatches) * t.F;
}

int peak(const ScheduleShape& shape, int rank) {
  return std::min(shape.microbatches, 2 * shape.ranks - 1 - rank) + std::min(shape.microbatches, rank + 1);
}

}  // namespace

constinit const ScheduleEntry kZbV = {.name = "zb-v",
                                      .summary = "two chunks a rank in a V; no bubble when F = I = W",
                                      .chunks = 2,
                                      .map = StageMap::vee,
                                      .build = build,
                                      .bubble = bubble,
                                      .peak = peak};

}  // namespace phalanx
