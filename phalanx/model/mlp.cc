#include "phalanx/model/mlp.h"

#include <cmath>

#include "phalanx/ops/swiglu.h"

namespace phalanx {
namespace {

LinearConfig into(int64_t hidden, int stacked, const ModelConfig& c) {
  return {.in = c.width,
          .out = hidden,
          .cut = Cut::outputs,
          .stacked = stacked,
          .bias = c.bias,
          .init_std = c.init_std};
}

// Residual branches end in smaller weights, so that the sum over layers keeps its size (GPT-2, section 2.3).
LinearConfig out_of(int64_t hidden, const ModelConfig& c) {
  return {.in = hidden,
          .out = c.width,
          .cut = Cut::inputs,
          .bias = c.bias,
          .init_std = c.init_std / std::sqrt(2.0 * c.layers)};
}

}  // namespace

GeluMlp::GeluMlp(const Builder& b, const std::string& name)
    : kind_(b.config.mlp == MlpKind::gelu_tanh ? Gelu::tanh : Gelu::erf),
      up_(b, {Linear(b, name + ".up", into(b.config.mlp_width, 1, b.config))}),
      down_(b, name + ".down", out_of(b.config.mlp_width, b.config)) {}

Task<Tensor> GeluMlp::forward(Tensor x_TD, Pass, Tape& tape) {
  const auto [h_TF] = co_await up_.forward(tape.save(x_TD));
  const Tensor a_TF = gelu(tape.save(h_TF), kind_);
  co_return co_await down_.forward(tape.save(a_TF));
}

Task<Tensor> GeluMlp::backward(Tensor dy_TD, Pass, Tape& tape) {
  Tensor a_TF = tape.take();
  const Tensor da_TF = co_await down_.backward(dy_TD, std::move(a_TF), tape);
  const std::array dh_TF = {gelu_backward(da_TF, tape.take(), kind_)};
  co_return co_await up_.backward(dh_TF, tape.take(), tape);
}

SwigluMlp::SwigluMlp(const Builder& b, const std::string& name, int64_t hidden)
    : gate_up_(b, {Linear(b, name + ".gate_up", into(hidden, 2, b.config))}),
      down_(b, name + ".down", out_of(hidden, b.config)) {}

Task<Tensor> SwigluMlp::forward(Tensor x_TD, Pass, Tape& tape) {
  const auto [h] = co_await gate_up_.forward(tape.save(x_TD));
  const Rows rows = tape.save(all_rows(h));
  const Rows a = swiglu(rows);
  co_return co_await down_.forward(tape.save(a.data));
}

Task<Tensor> SwigluMlp::backward(Tensor dy_TD, Pass, Tape& tape) {
  Tensor a = tape.take();
  const Tensor da = co_await down_.backward(dy_TD, std::move(a), tape);
  const Rows h = tape.take<Rows>();
  const std::array dh = {swiglu_backward({da, h.live}, h).data};
  co_return co_await gate_up_.backward(dh, tape.take(), tape);
}

}  // namespace phalanx
