// Microbatches cut along the sequence (TeraPipe, Li et al. 2021; Seq1F1B, Ao et al. 2024): n slices of each,
// that go forward in causal order and backward in reverse, so that a pipeline fills in steps of an n-th.
// Slice s of microbatch m has the number m n + s.
//
// A schedule that knows nothing of slices keeps its order: each of its steps becomes n, one a slice. It holds
// as many whole microbatches as before, and what it sends is 1/n as big, n times. 1f1b and zb-h1 know of
// them: with n - 1 more forwards before the first backward they go on a slice at a time, and hold P - r + n -
// 1 slices where (P - r) n would be.
#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {

int backward_slice(int i, int slices) { return i / slices * slices + slices - 1 - i % slices; }

Steps cut_into_slices(const Steps& whole, int slices) {
  Steps cut;
  for (const Step& step : whole) {
    for (int s = 0; s < slices; ++s) {
      const int last = slices - 1;
      const bool up = step.goes_forward();  // else from the last slice on
      Step part = step;
      part.microbatch = step.microbatch * slices + (up ? s : last - s);
      if (step.op == StepOp::FB) part.b_microbatch = step.b_microbatch * slices + last - s;
      cut.push_back(part);
    }
  }
  return cut;
}

}  // namespace phalanx
