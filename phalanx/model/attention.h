// Self-attention with grouped KV heads.
#pragma once

#include "phalanx/model/linear.h"

namespace phalanx {

/// Parameters NAME.q [H·d, D], NAME.k and NAME.v [G·d, D], NAME.o [D, H·d].
class Attention final : public Layer {
 public:
  Attention(ParameterStore& store, const std::string& name, int layer, const ModelConfig& config);
  Task<Tensor> forward(Tensor x_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;

 private:
  bool rotates() const { return rope_theta_ > 0; }

  int layer_;
  AttentionConfig config_;
  double rope_theta_;  // 0: positions are learned elsewhere
  Linear q_;
  Linear k_;
  Linear v_;
  Linear o_;
};

}  // namespace phalanx
