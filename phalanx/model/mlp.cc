#include "phalanx/model/mlp.h"

#include <cmath>

#include "phalanx/ops/swiglu.h"

namespace phalanx {
namespace {

LinearConfig into(int64_t hidden, const ModelConfig& c) {
  return {.in = c.width, .out = hidden, .bias = c.bias, .init_std = c.init_std};
}

// Residual branches end in smaller weights, so that the sum over layers keeps its size (GPT-2, section 2.3).
LinearConfig out_of(int64_t hidden, const ModelConfig& c) {
  return {.in = hidden, .out = c.width, .bias = c.bias, .init_std = c.init_std / std::sqrt(2.0 * c.layers)};
}

}  // namespace

GeluMlp::GeluMlp(ParameterStore& store, const std::string& name, const ModelConfig& c)
    : kind_(c.mlp == MlpKind::gelu_tanh ? Gelu::tanh : Gelu::erf),
      up_(store, name + ".up", into(c.mlp_width, c)),
      down_(store, name + ".down", out_of(c.mlp_width, c)) {}

Task<Tensor> GeluMlp::forward(Tensor x_TD, Pass, Tape& tape) {
  const Tensor h_TF = co_await up_.forward(x_TD, tape.scope("up"));
  const Tensor a_TF = gelu(tape.save(h_TF), kind_);
  co_return co_await down_.forward(a_TF, tape.scope("down"));
}

Task<Tensor> GeluMlp::backward(Tensor dy_TD, Pass, Tape& tape) {
  const Tensor da_TF = co_await down_.backward(dy_TD, tape.scope("down"));
  const Tensor dh_TF = gelu_backward(da_TF, tape.take(), kind_);
  co_return co_await up_.backward(dh_TF, tape.scope("up"));
}

SwigluMlp::SwigluMlp(ParameterStore& store, const std::string& name, int64_t hidden, const ModelConfig& c)
    : gate_up_(store, name + ".gate_up", into(2 * hidden, c)),
      down_(store, name + ".down", out_of(hidden, c)) {}

Task<Tensor> SwigluMlp::forward(Tensor x_TD, Pass, Tape& tape) {
  const Tensor h = co_await gate_up_.forward(x_TD, tape.scope("gate_up"));
  const Rows rows = tape.save(all_rows(h));
  const Rows a = swiglu(rows);
  co_return co_await down_.forward(a.data, tape.scope("down"));
}

Task<Tensor> SwigluMlp::backward(Tensor dy_TD, Pass, Tape& tape) {
  const Tensor da = co_await down_.backward(dy_TD, tape.scope("down"));
  const Rows h = tape.take<Rows>();
  const Rows dh = swiglu_backward({da, h.live}, h);
  co_return co_await gate_up_.backward(dh.data, tape.scope("gate_up"));
}

}  // namespace phalanx
