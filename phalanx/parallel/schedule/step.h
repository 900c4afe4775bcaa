// Schedules are data: lists of steps that the trainer runs, the planner times and the tests check.
#pragma once

#include <cstdint>
#include <vector>

namespace phalanx {

/// F forward; B backward with its weight gradients; I backward that puts them off; W those, later; FB the
/// forward of one microbatch overlapped with the backward (as B) of another.
enum class StepOp : uint8_t { F, B, I, W, FB };

struct Step {
  StepOp op;
  int microbatch;
  int b_microbatch = -1;  ///< of FB: the microbatch that goes backward
  friend bool operator==(const Step&, const Step&) = default;
};
using Steps = std::vector<Step>;

/// One stage, one microbatch at a time: F0 B0 F1 B1 … One live microbatch.
Steps sequential(int microbatches);
/// One stage, the forward of each microbatch beside the backward of the one before: F0 FB(1,0) FB(2,1) … I W.
/// Two live microbatches; hides the communication of one behind the computation of the other.
Steps overlapped(int microbatches);

}  // namespace phalanx
