// Interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2): v chunks a rank, so that the
// pipeline fills in steps of 1/v of a rank's layers. Microbatches go in groups of P: a group passes chunk 0,
// then chunk 1, and so on; backward the same with the last chunk first.
//
// Peak on rank r: min(2(P - 1 - r) + (v - 1)P + 1, M v) chunk activations. Idle on every rank: (P - 1)(F +
// B), F and B those of a chunk, when M is a multiple of P. M < P leaves P - M places of each of v - 1 turns
// empty: (v - 1)(P - M)(F + B) more. When P < M is no multiple, the last group is run as if full, without
// the steps of microbatches that do not exist: the idle time lies between the formula and what a full group
// would leave empty, and for M < 2P - 1 the first ranks hold less than the peak. A list that keeps to the
// peak on every rank need not exist then: with P = 4, v = 3, M = 5, rank 0 would go forward 15 times before
// its first backward, and rank 3 could not keep to 9.
#include <algorithm>

#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

int warmup_of(const ScheduleShape& shape, int rank) {
  return 2 * (shape.ranks - 1 - rank) + (shape.chunks - 1) * shape.ranks;
}

Steps build(const ScheduleShape& shape, int rank) {
  const int group = std::min(shape.ranks, shape.microbatches);
  const int groups = (shape.microbatches + group - 1) / group;
  const int turns = groups * group * shape.chunks;
  const int warmup = std::min(warmup_of(shape, rank), turns);
  Steps s;
  // The i-th chunk and microbatch in the order of forwards, or of backwards.
  const auto add = [&](StepOp op, int i) {
    const int turn = i / group % shape.chunks;
    const int chunk = op == StepOp::F ? turn : shape.chunks - 1 - turn;
    const int microbatch = i / (group * shape.chunks) * group + i % group;
    if (microbatch < shape.microbatches) s.push_back({op, chunk, microbatch});
  };
  for (int i = 0; i < warmup; ++i) add(StepOp::F, i);
  for (int i = warmup; i < turns; ++i) {
    add(StepOp::F, i);
    add(StepOp::B, i - warmup);
  }
  for (int i = turns - warmup; i < turns; ++i) add(StepOp::B, i);
  return s;
}

double bubble(const ScheduleShape& shape, const StepTimes& t) {
  const int empty = (shape.chunks - 1) * std::max(0, shape.ranks - shape.microbatches);
  return (shape.ranks - 1 + empty) * (t.F + t.B);
}

int peak(const ScheduleShape& shape, int rank) {
  return std::min(warmup_of(shape, rank) + 1, shape.microbatches * shape.chunks);
}

}  // namespace

constinit const ScheduleEntry kInterleaved = {.name = "interleaved",
                                              .summary = "1f1b over several chunks a rank",
                                              .chunks = 2,
                                              .any_chunks = true,
                                              .map = StageMap::looped,
                                              .build = build,
                                              .bubble = bubble,
                                              .peak = peak};

}  // namespace phalanx
