// One rank, the forward of each microbatch beside the backward of the one before: F0 FB(1,0) FB(2,1) … I W.
// Hides the communication of one (experts', or over tp) behind the computation of the other, as DeepSeek's
// dual-batch overlap does (DeepSeek-V3, arXiv:2412.19437, section 3.4.2, for inference).
// Idle: 0. Peak: min(2, M). Parameters: once.
#include <algorithm>

#include "phalanx/base/error.h"
#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

void require(const ScheduleShape& shape) {
  if (shape.ranks == 1) return;
  throw Error("schedule overlapped is for one stage, not {}; dualpipe overlaps on several", shape.ranks);
}

Steps build(const ScheduleShape& shape, int /*rank*/) {
  const int last = shape.microbatches - 1;
  Steps s;
  s.push_back({StepOp::F, 0, 0});
  for (int m = 1; m <= last; ++m) s.push_back({StepOp::FB, 0, m, 0, m - 1});
  s.push_back({StepOp::I, 0, last});
  s.push_back({StepOp::W, 0, last});
  return s;
}

double bubble(const ScheduleShape& /*shape*/, const StepTimes& /*times*/) { return 0; }

int peak(const ScheduleShape& shape, int /*rank*/) { return std::min(2, shape.microbatches); }

}  // namespace

constinit const ScheduleEntry kOverlapped = {.name = "overlapped",
                                             .summary = "one stage, a forward beside a backward",
                                             .require = require,
                                             .build = build,
                                             .bubble = bubble,
                                             .peak = peak};

}  // namespace phalanx
