#include "phalanx/parallel/schedule/step.h"

#include "phalanx/base/text.h"

namespace phalanx {

std::string_view op_name(StepOp op) {
  switch (op) {
    case StepOp::F:
      return "F";
    case StepOp::B:
      return "B";
    case StepOp::I:
      return "I";
    case StepOp::W:
      return "W";
    case StepOp::FB:
      break;
  }
  return "FB";
}

std::string microbatch_text(int microbatch, int slices) {
  return slices == 1 ? format("{}", microbatch) : format("{}.{}", microbatch / slices, microbatch % slices);
}

std::string step_text(const Step& step, bool chunks, int slices) {
  const auto part = [=](std::string_view op, int chunk, int microbatch) {
    const std::string number = microbatch_text(microbatch, slices);
    return chunks ? format("{}{}.{}", op, chunk, number) : format("{}{}", op, number);
  };
  if (step.op != StepOp::FB) return part(op_name(step.op), step.chunk, step.microbatch);
  return part("F", step.chunk, step.microbatch) + "&" + part("B", step.b_chunk, step.b_microbatch);
}

}  // namespace phalanx
