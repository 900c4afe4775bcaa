// Self-attention with grouped KV heads.
#pragma once

#include "phalanx/model/linear.h"
#include "phalanx/ops/rope.h"

namespace phalanx {

/// Parameters NAME.q [H·d, D], NAME.k and NAME.v [G·d, D], NAME.o [D, H·d]. Each rank of tp has H/tp heads
/// and the KV heads they use: G/tp, or one that it shares with its neighbours where there are fewer than
/// ranks. Ranks of cp have rows, and inside more rows of fewer of those heads (parallel/context_parallel.h).
class Attention final : public Layer {
 public:
  Attention(const Builder& build, const std::string& name, int layer);
  Task<Tensor> forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;
  bool norms() const override { return qkv_.norms(); }

 private:
  bool rotates() const { return rotation_.columns() > 0; }

  ContextParallel& context_;
  int layer_;
  AttentionConfig config_;  // of the heads of this rank of tp
  Rotation rotation_;       // empty: positions are learned elsewhere
  GatheredLinears<3> qkv_;
  Linear o_;
};

}  // namespace phalanx
