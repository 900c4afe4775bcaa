#include "phalanx/model/attention.h"

#include <algorithm>
#include <cmath>

#include "phalanx/ops/rope.h"

namespace phalanx {
namespace {

// What backward needs of the forward.
struct Saved {
  LinearRows x;  // of the stream
  AttendedRows attended;
};

LinearConfig inner(int heads, int parts, const ModelConfig& c) {
  return {.in = c.width,
          .out = heads * c.head_dim,
          .cut = Cut::outputs,
          .parts = parts,
          .bias = c.bias,
          .init_std = c.init_std};
}

LinearConfig outer(const ModelConfig& c) {
  return {.in = c.heads * c.head_dim,
          .out = c.width,
          .cut = Cut::inputs,
          .bias = c.bias,
          .init_std = c.init_std / std::sqrt(2.0 * c.layers)};
}

Rotation rotation_of(const ModelConfig& c) {
  return c.positions == Positions::rope ? rotation(c.rope_theta, c.head_dim, c.yarn) : Rotation();
}

int kv_parts(const Builder& b) { return std::min(b.config.kv_heads, b.tensor.ranks()); }

}  // namespace

Attention::Attention(const Builder& b, const std::string& name, int layer)
    : context_(b.context),
      layer_(layer),
      config_{.heads = b.config.heads / b.tensor.ranks(),
              .kv_heads = b.config.kv_heads / kv_parts(b),
              .head_dim = b.config.head_dim,
              .scale = 1 / std::sqrt(static_cast<double>(b.config.head_dim))},
      rotation_(rotation_of(b.config)),
      qkv_(b, {Linear(b, name + ".q", inner(b.config.heads, 0, b.config)),
               Linear(b, name + ".k", inner(b.config.kv_heads, kv_parts(b), b.config)),
               Linear(b, name + ".v", inner(b.config.kv_heads, kv_parts(b), b.config))}),
      o_(b, name + ".o", outer(b.config)) {}

Task<Tensor> Attention::forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) {
  const LinearRows x = qkv_.rows(std::move(x_TD));
  auto [q, k, v] = co_await qkv_.forward(x, pass.row_norm());
  if (pass.cache) {
    const AttentionRows rows = {q, k, v, rotates() ? &rotation_ : nullptr};
    const Tensor y = pass.cache->attend(layer_, rows, *pass.batch, config_);
    LinearRows rows_of_o = o_.rows(y);
    co_return co_await o_.forward(std::move(rows_of_o), std::move(residual_TD));
  }
  if (rotates()) {
    rope_into(q, pass.batch->positions, config_.head_dim, rotation_);
    rope_into(k, pass.batch->positions, config_.head_dim, rotation_);
  }
  const AttendedRows attended =
      co_await context_.attend(std::move(q), std::move(k), std::move(v), pass.sequence_rows(layer_), config_);
  Saved saved = {x, attended};
  tape.save(std::move(saved));
  LinearRows rows_of_o = o_.rows(attended.y_THd);
  co_return co_await o_.forward(std::move(rows_of_o), std::move(residual_TD));
}

Task<Tensor> Attention::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  auto saved = tape.take<Saved>();
  LinearRows rows_of_o = {saved.attended.y_THd};  // which attention keeps
  const Tensor dy_THd = co_await o_.backward(dy_TD, std::move(rows_of_o), tape);
  AttentionConfig config = config_;
  config.deterministic = pass.deterministic;
  AttentionGradients d =
      co_await context_.attend_backward(dy_THd, saved.attended, pass.sequence_rows(layer_), config);
  if (rotates()) {
    rope_backward_into(d.dq_THd, pass.batch->positions, config_.head_dim, rotation_);
    rope_backward_into(d.dk_TGd, pass.batch->positions, config_.head_dim, rotation_);
  }
  const std::array dqkv = {d.dq_THd, d.dk_TGd, d.dv_TGd};
  co_return co_await qkv_.backward(dqkv, std::move(saved.x), tape);
}

}  // namespace phalanx
