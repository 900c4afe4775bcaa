// Dense feed-forward layers. The hidden features are cut over tp.
#pragma once

#include "phalanx/model/linear.h"
#include "phalanx/ops/gelu.h"

namespace phalanx {

/// down(gelu(up(x))). Parameters NAME.up [F, D], NAME.down [D, F].
class GeluMlp final : public Layer {
 public:
  GeluMlp(const Builder& build, const std::string& name);
  Task<Tensor> forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;

 private:
  Gelu kind_;
  GatheredLinears<1> up_;
  Linear down_;
};

/// down(silu(gate(x)) · up(x)). Parameters NAME.gate_up [2, F, D] (gate first), NAME.down [D, F]; F = hidden.
class SwigluMlp final : public Layer {
 public:
  SwigluMlp(const Builder& build, const std::string& name, int64_t hidden);
  Task<Tensor> forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;
  bool norms() const override { return gate_up_.norms(); }

 private:
  GatheredLinears<1> gate_up_;
  Linear down_;
};

}  // namespace phalanx
