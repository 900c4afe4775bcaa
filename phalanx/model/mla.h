// Multi-head latent attention: DeepSeek-V2, 2024, section 2.1; Hugging Face's DeepseekV3Attention.
#pragma once

#include <memory>

#include "phalanx/model/linear.h"
#include "phalanx/model/norm.h"
#include "phalanx/ops/latent_kv.h"
#include "phalanx/ops/rope.h"

namespace phalanx {

/// A narrow vector of each row of the stream, norm(down(x)), [T, R]. Parameters NAME [R, D], NAME_norm [R].
class Latent {
 public:
  Latent(const Builder& build, const std::string& name, int64_t rank);
  Task<Tensor> forward(LinearRows x, Tape& tape);
  /// The gradient of x, given the forward's x; where there is a `sum`, it is added to that.
  Task<Tensor> backward(Tensor dy_TR, LinearRows x, Tape& tape, Tensor sum = {});

 private:
  Linear down_;
  std::unique_ptr<Norm> norm_;
};

/// q = q_b(norm(q_a(x))), or q(x) without a latent; k and v of each head from kv_b(norm(kv_a(x))), with
/// columns of k that turn, k_rope(x), which all heads share; o of what attention gives. Parameters, with d =
/// qk_nope_head_dim + qk_rope_head_dim: NAME.q_a [Rq, D], NAME.q_a_norm [Rq], NAME.q_b [H·d, Rq] (or NAME.q
/// [H·d, D]); NAME.kv_a [R, D], NAME.kv_a_norm [R], NAME.k_rope [qk_rope_head_dim, D], NAME.kv_b
/// [H·(qk_nope_head_dim + v_head_dim), R], NAME.o [D, H·v_head_dim].
///
/// Under tp each rank has H/tp heads and all that is narrow: it computes the latents of the stream's rows,
/// and these alone travel (Rq + R + qk_rope_head_dim elements a row, where Attention's inputs are D). Ranks
/// of cp change rows for heads behind kv_b. The KV cache holds each head's k and v, not the latents.
class Mla final : public Layer {
 public:
  Mla(const Builder& build, const std::string& name, int layer);
  Task<Tensor> forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;

 private:
  TensorParallel& tensor_;
  ContextParallel& context_;
  int layer_;
  LatentHeads shape_;       // of this rank of tp's heads, shared out over cp
  AttentionConfig config_;  // of those
  Rotation rotation_;
  std::unique_ptr<Latent> q_a_;  // or null: queries come from the stream
  GatheredLinears<1> q_b_;
  Latent kv_a_;
  Linear k_rope_;
  GatheredLinears<1> kv_b_;
  Linear o_;
};

}  // namespace phalanx
