#include "phalanx/parallel/schedule/step.h"

namespace phalanx {

Steps sequential(int microbatches) {
  Steps s;
  for (int m = 0; m < microbatches; ++m) {
    s.push_back({StepOp::F, 0, m});
    s.push_back({StepOp::B, 0, m});
  }
  return s;
}

Steps overlapped(int microbatches) {
  Steps s;
  if (microbatches == 0) return s;
  s.push_back({StepOp::F, 0, 0});
  for (int m = 1; m < microbatches; ++m) s.push_back({StepOp::FB, 0, m, 0, m - 1});
  s.push_back({StepOp::I, 0, microbatches - 1});
  s.push_back({StepOp::W, 0, microbatches - 1});
  return s;
}

}  // namespace phalanx
