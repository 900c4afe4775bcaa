// DualPipe (DeepSeek-V3, arXiv:2412.19437, section 3.2.1): half of the microbatches enter at each end of the
// pipeline, and the forward of one is overlapped with the backward of another. Every rank holds two stages:
// chunk 0 (direction 0) is stage r, chunk 1 stage P - 1 - r. Microbatches 0 … M/2 - 1 go in direction 0.
//
// Idle on every rank: (P/2 - 1)(FB + B - 3W) with FB = F + B = 3W; with a shorter FB, on the worst rank.
// Peak: P + 1. Parameters: twice. P is even, M even and at least 2P.
#include <algorithm>
#include <array>
#include <deque>

#include "phalanx/base/error.h"
#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

struct Pass {
  int chunk, microbatch;
};

// Writes a rank's list by phases, the two directions as the rank sees them.
class Writer {
 public:
  explicit Writer(const DualPipeRank& rank) : rank_(rank) {}

  void forward(int phase) {
    const Pass f = next(forwards_, phase);
    steps_.push_back({StepOp::F, f.chunk, f.microbatch});
  }
  void backward(int phase, bool put_off_weights = false) {
    const Pass b = next(backwards_, phase);
    steps_.push_back({put_off_weights ? StepOp::I : StepOp::B, b.chunk, b.microbatch});
    if (put_off_weights) put_off_.push_back(b);
  }
  void weights() {
    steps_.push_back({StepOp::W, put_off_.front().chunk, put_off_.front().microbatch});
    put_off_.pop_front();
  }
  void pair(int forward_phase, int backward_phase) {
    const Pass f = next(forwards_, forward_phase);
    const Pass b = next(backwards_, backward_phase);
    steps_.push_back({StepOp::FB, f.chunk, f.microbatch, b.chunk, b.microbatch});
  }
  Steps take() { return std::move(steps_); }

 private:
  Pass next(std::array<int, 2>& counts, int phase) const {
    const int chunk = phase == 0 ? rank_.chunk_of_phase_0 : 1 - rank_.chunk_of_phase_0;
    const int first = chunk == 1 ? rank_.first_microbatch_of_1 : 0;
    return {chunk, first + counts[static_cast<size_t>(phase)]++};
  }

  DualPipeRank rank_;
  std::array<int, 2> forwards_{};
  std::array<int, 2> backwards_{};
  std::deque<Pass> put_off_;
  Steps steps_;
};

void require(const ScheduleShape& shape) {
  if (shape.ranks % 2 != 0) {
    throw Error("schedule dualpipe: {} stages; it takes an even number (dualpipe-v takes any)", shape.ranks);
  }
  const int least = 2 * shape.ranks;
  if (shape.microbatches < least || shape.microbatches % 2 != 0) {
    throw Error("schedule dualpipe: {} microbatches; on {} stages it takes an even number, at least {}",
                shape.microbatches, shape.ranks, least);
  }
}

Steps build(const ScheduleShape& shape, int rank) {
  const int depth = std::min(rank, shape.ranks - 1 - rank);
  return dualpipe_steps({.half = shape.ranks / 2,
                         .depth = depth,
                         .pairs = shape.microbatches / 2 - shape.ranks + depth + 1,
                         .chunk_of_phase_0 = rank < shape.ranks / 2 ? 0 : 1,
                         .first_microbatch_of_1 = shape.microbatches / 2});
}

double bubble(const ScheduleShape& shape, const StepTimes& t) {
  const int before_middle = shape.ranks / 2 - 1;
  return before_middle * (t.FB + t.B - 3 * t.W);
}

int peak(const ScheduleShape& shape, int /*rank*/) { return shape.ranks + 1; }

}  // namespace

Steps dualpipe_steps(const DualPipeRank& rank) {
  Writer s(rank);
  const int inner = rank.half - rank.depth - 1;  // ranks between this one and the middle
  const int outer = rank.depth + 1;              // ranks from the end, with this one
  for (int i = 0; i < 2 * inner; ++i) s.forward(0);
  for (int i = 0; i < outer; ++i) {
    s.forward(0);
    s.forward(1);
  }
  for (int i = 0; i < inner; ++i) {
    s.backward(1, true);
    s.weights();
    s.forward(1);
  }
  for (int i = 0; i < rank.pairs; ++i) {
    if (i == 0 && inner == 0) {  // overlapping these would delay the backward
      s.forward(0);
      s.backward(1);
    } else {
      s.pair(0, 1);
    }
    s.pair(1, 0);
  }
  for (int i = 0; i < inner; ++i) {
    s.backward(1);
    s.pair(1, 0);
  }
  for (int i = 0; i < 2 * outer; ++i) s.backward(1 - i % 2, i >= outer);
  for (int i = 0; i < inner; ++i) {
    s.weights();
    s.backward(0, true);
  }
  for (int i = 0; i < outer; ++i) s.weights();
  return s.take();
}

constinit const ScheduleEntry kDualPipe = {.name = "dualpipe",
                                           .summary = "from both ends, forwards overlapped with backwards",
                                           .chunks = 2,
                                           .map = StageMap::both_ways,
                                           .require = require,
                                           .build = build,
                                           .bubble = bubble,
                                           .peak = peak};

}  // namespace phalanx
