// DualPipeV (the "cut in half" of DualPipe, github.com/deepseek-ai/DualPipe): one half of DualPipe's ranks,
// the other direction being the way back of a V: rank r holds stages r and 2P - 1 - r of 2P.
//
// Idle on every rank: (P - 1)(FB + B - 3W) with FB = F + B = 3W, all of a chunk; with a shorter FB, on the
// worst rank. Peak: 2P + 1 chunk activations. Parameters: once. M is at least 2P.
#include "phalanx/base/error.h"
#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

void require(const ScheduleShape& shape) {
  const int least = 2 * shape.ranks;
  if (shape.microbatches < least) {
    throw Error("schedule dualpipe-v: {} microbatches; on {} ranks it takes at least {}", shape.microbatches,
                shape.ranks, least);
  }
}

Steps build(const ScheduleShape& shape, int rank) {
  return dualpipe_steps(
      {.half = shape.ranks, .depth = rank, .pairs = shape.microbatches - 2 * shape.ranks + rank + 1});
}

double bubble(const ScheduleShape& shape, const StepTimes& t) {
  return (shape.ranks - 1) * (t.FB + t.B - 3 * t.W);
}

int peak(const ScheduleShape& shape, int /*rank*/) { return 2 * shape.ranks + 1; }

}  // namespace

constinit const ScheduleEntry kDualPipeV = {.name = "dualpipe-v",
                                            .summary = "dualpipe on half the ranks, two chunks each in a V",
                                            .chunks = 2,
                                            .map = StageMap::vee,
                                            .require = require,
                                            .build = build,
                                            .bubble = bubble,
                                            .peak = peak};

}  // namespace phalanx
