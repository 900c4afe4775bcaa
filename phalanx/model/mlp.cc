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

Task<Tensor> GeluMlp::forward(Tensor x_TD, Tensor residual_TD, Pass, Tape& tape) {
  LinearRows x = tape.save(up_.rows(std::move(x_TD)));
  const GeluRows hidden = co_await up_.forward_gelu(std::move(x), kind_);
  tape.save(hidden.h);
  LinearRows a = tape.save(down_.rows(hidden.a));
  co_return co_await down_.forward(std::move(a), std::move(residual_TD));
}

Task<Tensor> GeluMlp::backward(Tensor dy_TD, Pass, Tape& tape) {
  auto a = tape.take<LinearRows>();
  Tensor h = tape.take();
  const Tensor dh = co_await down_.backward_gelu(dy_TD, std::move(h), std::move(a), kind_, tape);
  const std::array dh_TF = {dh};
  auto x = tape.take<LinearRows>();
  co_return co_await up_.backward(dh_TF, std::move(x), tape);
}

SwigluMlp::SwigluMlp(const Builder& b, const std::string& name, int64_t hidden)
    : gate_up_(b, {Linear(b, name + ".gate_up", into(hidden, 2, b.config))}),
      down_(b, name + ".down", out_of(hidden, b.config)) {}

Task<Tensor> SwigluMlp::forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) {
  LinearRows x = gate_up_.rows(std::move(x_TD));
  if (pass.cache) {
    const Tensor gated = co_await gate_up_.forward_swiglu(std::move(x), pass.row_norm());
    LinearRows a = down_.rows(gated);
    co_return co_await down_.forward(std::move(a), std::move(residual_TD));
  }
  tape.save(x);
  const auto [h] = co_await gate_up_.forward(std::move(x));
  const Rows rows = tape.save(all_rows(h));
  LinearRows a = tape.save(down_.rows(swiglu(rows).data));
  co_return co_await down_.forward(std::move(a), std::move(residual_TD));
}

Task<Tensor> SwigluMlp::backward(Tensor dy_TD, Pass, Tape& tape) {
  auto a = tape.take<LinearRows>();
  const Tensor da = co_await down_.backward(dy_TD, std::move(a), tape);
  const Rows h = tape.take<Rows>();
  const std::array dh = {swiglu_backward({da, h.live}, h).data};
  auto x = tape.take<LinearRows>();
  co_return co_await gate_up_.backward(dh, std::move(x), tape);
}

}  // namespace phalanx
