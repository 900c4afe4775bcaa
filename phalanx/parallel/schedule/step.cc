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

std::string step_text(const Step& step, bool chunks) {
  const auto part = [chunks](std::string_view op, int chunk, int microbatch) {
    return chunks ? format("{}{}.{}", op, chunk, microbatch) : format("{}{}", op, microbatch);
  };
  if (step.op != StepOp::FB) return part(op_name(step.op), step.chunk, step.microbatch);
  return part("F", step.chunk, step.microbatch) + "&" + part("B", step.b_chunk, step.b_microbatch);
}

}  // namespace phalanx
