#include "phalanx/parallel/schedule/step.h"

namespace phalanx {

Steps sequential(int microbatches) {
  Steps s;
  for (int m = 0; m < microbatches; ++m) {
    s.push_back({StepOp::F, m});
    s.push_back({StepOp::B, m});
  }
  return s;
}

Steps overlapped(int microbatches) {
  Steps s;
  if (microbatches == 0) return s;
  s.push_back({StepOp::F, 0});
  for (int m = 1; m < microbatches; ++m) s.push_back({StepOp::FB, m, m - 1});
  s.push_back({StepOp::I, microbatches - 1});
  s.push_back({StepOp::W, microbatches - 1});
  return s;
}

}  // namespace phalanx
