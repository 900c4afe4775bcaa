#include "phalanx/model/mla.h"

#include <cmath>

namespace phalanx {
namespace {

constexpr double kLatentEps = 1e-6;  // of the latents' norms, in DeepSeek's models whatever norm_eps is

// What backward needs of the forward.
struct Saved {
  LinearRows x;      // of the stream's rows, as are the next two
  LinearRows q_in;   // what q_b takes: the latent, or x
  LinearRows kv_in;  // what kv_b takes
  AttendedRows attended;
};

LinearConfig linear(int64_t in, int64_t out, Cut cut, const ModelConfig& c) {
  return {.in = in, .out = out, .cut = cut, .init_std = c.init_std};
}

LinearConfig queries(const ModelConfig& c) {
  return linear(c.mla.q_lora_rank > 0 ? c.mla.q_lora_rank : c.width, c.heads * c.head_dim, Cut::outputs, c);
}

LinearConfig outer(const ModelConfig& c) {
  LinearConfig o = linear(c.heads * c.mla.v_head_dim, c.width, Cut::inputs, c);
  o.init_std /= std::sqrt(2.0 * c.layers);
  return o;
}

LatentHeads heads_of(const Builder& b) {
  const MlaConfig& m = b.config.mla;
  return {.heads = b.config.heads / b.tensor.ranks(),
          .nope = m.qk_nope_head_dim,
          .rope = m.qk_rope_head_dim,
          .values = m.v_head_dim};
}

}  // namespace

Latent::Latent(const Builder& b, const std::string& name, int64_t rank)
    : down_(b, name, linear(b.config.width, rank, Cut::none, b.config)),
      norm_(make_rms_norm(b, name + "_norm", rank, kLatentEps)) {}

Task<Tensor> Latent::forward(LinearRows x, Tape& tape) {
  const Tensor y_TR = co_await down_.forward(std::move(x));
  co_return co_await norm_->forward(y_TR, tape);
}

Task<Tensor> Latent::backward(Tensor dy_TR, LinearRows x, Tape& tape, Tensor sum) {
  const Tensor dx_TR = co_await norm_->backward(dy_TR, tape, Tensor());
  co_return co_await down_.backward(dx_TR, std::move(x), tape, sum);
}

Mla::Mla(const Builder& b, const std::string& name, int layer)
    : tensor_(b.tensor),
      context_(b.context),
      layer_(layer),
      shape_(heads_of(b)),
      config_{.heads = static_cast<int>(shape_.heads),
              .kv_heads = static_cast<int>(shape_.heads),
              .head_dim = b.config.head_dim,
              .scale = score_factor(b.config.yarn) / std::sqrt(static_cast<double>(b.config.head_dim)),
              .value_dim = b.config.mla.v_head_dim},
      rotation_(rotation(b.config.rope_theta, b.config.mla.qk_rope_head_dim, b.config.yarn)),
      q_a_(b.config.mla.q_lora_rank > 0 ? std::make_unique<Latent>(b, name + ".q_a", b.config.mla.q_lora_rank)
                                        : nullptr),
      q_b_(b, {Linear(b, name + (q_a_ ? ".q_b" : ".q"), queries(b.config))}),
      kv_a_(b, name + ".kv_a", b.config.mla.kv_lora_rank),
      k_rope_(b, name + ".k_rope", linear(b.config.width, shape_.rope, Cut::none, b.config)),
      kv_b_(b, {Linear(b, name + ".kv_b",
                       linear(b.config.mla.kv_lora_rank, b.config.heads * (shape_.nope + shape_.values),
                              Cut::outputs, b.config))}),
      o_(b, name + ".o", outer(b.config)) {}

Task<Tensor> Mla::forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) {
  const LinearRows x = k_rope_.rows(x_TD);
  Tensor latent = x_TD;
  if (q_a_) latent = co_await q_a_->forward(x, tape.scope("q_a"));
  const LinearRows q_in = q_b_.rows(std::move(latent));
  const Tensor kv_latent = co_await kv_a_.forward(x, tape.scope("kv_a"));
  const LinearRows kv_in = kv_b_.rows(kv_latent);
  Tensor k_rope = co_await k_rope_.forward(x);
  k_rope = co_await tensor_.gather(k_rope);
  auto [q] = co_await q_b_.forward(q_in);
  const auto [kv] = co_await kv_b_.forward(kv_in);
  rope_into(q, pass.batch->positions, config_.head_dim, rotation_);
  rope_into(k_rope, pass.batch->positions, shape_.rope, rotation_);
  KeysAndValues heads = expand_kv(kv, k_rope, shape_);
  if (pass.cache) {
    const AttentionRows rows = {q, heads.k_THd, heads.v_THd};
    const Tensor y = pass.cache->attend(layer_, rows, *pass.batch, config_);
    LinearRows rows_of_o = o_.rows(y);
    co_return co_await o_.forward(std::move(rows_of_o), std::move(residual_TD));
  }
  const AttendedRows attended = co_await context_.attend(
      std::move(q), std::move(heads.k_THd), std::move(heads.v_THd), pass.sequence_rows(layer_), config_);
  Saved saved = {x, q_in, kv_in, attended};
  tape.save(std::move(saved));
  LinearRows rows_of_o = o_.rows(attended.y_THd);
  co_return co_await o_.forward(std::move(rows_of_o), std::move(residual_TD));
}

Task<Tensor> Mla::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  auto saved = tape.take<Saved>();
  LinearRows rows_of_o = {saved.attended.y_THd};  // which attention keeps
  const Tensor dy_THd = co_await o_.backward(dy_TD, std::move(rows_of_o), tape);
  AttentionConfig config = config_;
  config.deterministic = pass.deterministic;
  AttentionGradients d =
      co_await context_.attend_backward(dy_THd, saved.attended, pass.sequence_rows(layer_), config);
  rope_backward_into(d.dq_THd, pass.batch->positions, config_.head_dim, rotation_);
  LatentGradients dkv = expand_kv_backward(d.dk_TGd, d.dv_TGd, shape_);
  rope_backward_into(dkv.dk_rope_Td, pass.batch->positions, shape_.rope, rotation_);

  const std::array dq = {d.dq_THd};
  Tensor dx = co_await q_b_.backward(dq, saved.q_in, tape);
  if (q_a_) dx = co_await q_a_->backward(dx, saved.x, tape.scope("q_a"));
  const std::array dexpanded = {dkv.dkv_THd};
  const Tensor dlatent = co_await kv_b_.backward(dexpanded, saved.kv_in, tape);
  dx = co_await kv_a_.backward(dlatent, saved.x, tape.scope("kv_a"), dx);
  const Tensor dk_rope = co_await tensor_.reduce(dkv.dk_rope_Td);
  co_return co_await k_rope_.backward(dk_rope, saved.x, tape, dx);
}

}  // namespace phalanx
