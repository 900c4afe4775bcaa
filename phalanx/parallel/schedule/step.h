// Schedules are data: lists of steps that the trainer runs, the planner times and the tests check.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

/// F forward; B backward with its weight gradients; I backward that puts them off; W those, later; FB the
/// forward of one microbatch overlapped with the backward (as B) of another.
enum class StepOp : uint8_t { F, B, I, W, FB };

/// One thing that one rank does. A rank's chunks are numbered from 0; Schedule (schedule.h) says which stage
/// of the model each is.
struct Step {
  StepOp op;
  int chunk = 0;
  int microbatch = 0;     ///< of the whole job; of cut ones the number of a slice (schedule.h)
  int b_chunk = -1;       ///< of FB: the chunk that goes backward
  int b_microbatch = -1;  ///< of FB: the microbatch that goes backward
  friend bool operator==(const Step&, const Step&) = default;

  bool goes_forward() const { return op == StepOp::F || op == StepOp::FB; }
  bool goes_backward() const { return op == StepOp::B || op == StepOp::I || op == StepOp::FB; }
  /// What of the step goes backward, if goes_backward().
  int backward_chunk() const { return op == StepOp::FB ? b_chunk : chunk; }
  int backward_microbatch() const { return op == StepOp::FB ? b_microbatch : microbatch; }
};
using Steps = std::vector<Step>;

/// "F", "B", "I", "W" or "FB".
std::string_view op_name(StepOp op);
/// "3"; of several slices "1.2" (microbatch 1, slice 2).
std::string microbatch_text(int microbatch, int slices);
/// "F3", or with chunks "F1.3" (chunk 1, microbatch 3); an overlapped pair is "F1.3&B0.2".
std::string step_text(const Step& step, bool chunks, int slices = 1);

}  // namespace phalanx
