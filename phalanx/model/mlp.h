// Dense feed-forward layers.
#pragma once

#include "phalanx/model/linear.h"
#include "phalanx/ops/gelu.h"

namespace phalanx {

/// down(gelu(up(x))). Parameters NAME.up [F, D], NAME.down [D, F].
class GeluMlp final : public Layer {
 public:
  GeluMlp(ParameterStore& store, const std::string& name, const ModelConfig& config);
  Task<Tensor> forward(Tensor x_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;

 private:
  Gelu kind_;
  Linear up_;
  Linear down_;
};

/// down(silu(gate(x)) · up(x)). Parameters NAME.gate_up [2F, D] (gate first), NAME.down [D, F]; F = hidden.
class SwigluMlp final : public Layer {
 public:
  SwigluMlp(ParameterStore& store, const std::string& name, int64_t hidden, const ModelConfig& config);
  Task<Tensor> forward(Tensor x_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;

 private:
  Linear gate_up_;
  Linear down_;
};

}  // namespace phalanx
