#include "phalanx/model/attention.h"

#include <cmath>

#include "phalanx/ops/rope.h"

namespace phalanx {
namespace {

// What backward needs of the forward, besides the linears' inputs.
struct Saved {
  Tensor q;
  Tensor k;
  Tensor v;
  Attended out;
};

LinearConfig linear(int64_t in, int64_t out, const ModelConfig& c, double init_std) {
  return {.in = in, .out = out, .bias = c.bias, .init_std = init_std};
}

}  // namespace

Attention::Attention(ParameterStore& store, const std::string& name, int layer, const ModelConfig& c)
    : layer_(layer),
      config_{.heads = c.heads,
              .kv_heads = c.kv_heads,
              .head_dim = c.head_dim,
              .scale = 1 / std::sqrt(static_cast<double>(c.head_dim))},
      rope_theta_(c.positions == Positions::rope ? c.rope_theta : 0),
      q_(store, name + ".q", linear(c.width, c.heads * c.head_dim, c, c.init_std)),
      k_(store, name + ".k", linear(c.width, c.kv_heads * c.head_dim, c, c.init_std)),
      v_(store, name + ".v", linear(c.width, c.kv_heads * c.head_dim, c, c.init_std)),
      o_(store, name + ".o",
         linear(c.heads * c.head_dim, c.width, c, c.init_std / std::sqrt(2.0 * c.layers))) {}

Task<Tensor> Attention::forward(Tensor x_TD, Pass pass, Tape& tape) {
  const Tensor q = co_await q_.forward(x_TD, tape.scope("q"));
  const Tensor k = co_await k_.forward(x_TD, tape.scope("k"));
  const Tensor v = co_await v_.forward(x_TD, tape.scope("v"));
  if (rotates()) {
    rope_into(q, pass.batch->positions, config_.head_dim, rope_theta_);
    rope_into(k, pass.batch->positions, config_.head_dim, rope_theta_);
  }
  Attended out;
  if (pass.cache) {
    out.y_THd = attention_over_segments(q, pass.batch->positions, pass.cache->append(layer_, k, v), config_);
  } else {
    out = attention(q, k, v, pass.batch->sequence_offsets, config_);
    Saved saved = {q, k, v, out};
    tape.save(std::move(saved));
  }
  co_return co_await o_.forward(out.y_THd, tape.scope("o"));
}

Task<Tensor> Attention::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  const Tensor dy_THd = co_await o_.backward(dy_TD, tape.scope("o"));
  const auto saved = tape.take<Saved>();
  const AttentionGradients d =
      attention_backward(dy_THd, saved.q, saved.k, saved.v, saved.out, pass.batch->sequence_offsets, config_);
  if (rotates()) {
    rope_backward_into(d.dq_THd, pass.batch->positions, config_.head_dim, rope_theta_);
    rope_backward_into(d.dk_TGd, pass.batch->positions, config_.head_dim, rope_theta_);
  }
  const Tensor dx_q = co_await q_.backward(d.dq_THd, tape.scope("q"));
  const Tensor dx_qk = co_await k_.backward(d.dk_TGd, tape.scope("k"), dx_q);
  co_return co_await v_.backward(d.dv_TGd, tape.scope("v"), dx_qk);
}

}  // namespace phalanx
