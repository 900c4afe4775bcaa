#include "phalanx/train/layer_memory.h"

#include <algorithm>

namespace phalanx {

// T tokens of a microbatch, or of a slice of one, D model width, F MLP width, E experts, K top-k, R rows that
// a rank receives, C rows in expert order (R·K slots). Under tp a rank has T/tp rows of the stream or all,
// all rows inside a layer, and 1/tp of its features.

int64_t LayerMemory::kv() const {
  const int64_t heads = c_.heads / tp_;
  if (c_.attention == AttentionKind::mla)
    return block(t_ * heads * c_.head_dim) + block(t_ * heads * c_.mla.v_head_dim);
  const int64_t kv_heads = c_.kv_heads / std::min(c_.kv_heads, tp_);
  return 2 * block(t_ * ulysses_ * std::max<int64_t>(kv_heads / ulysses_, 1) * c_.head_dim);
}

BranchMemory LayerMemory::attention() const {
  if (c_.attention == AttentionKind::mla) return mla();
  const int64_t heads = c_.heads / tp_;
  const int kv_heads = c_.kv_heads / std::min(c_.kv_heads, tp_);
  const int64_t q = block(t_ * heads * c_.head_dim);
  const int64_t own_kv = 2 * block(t_ * kv_heads * c_.head_dim);
  BranchMemory m;
  m.saved = norm() + x() + 2 * q + kv() + block(t_ * heads);  // normed; q, y; k, v; log-sum-exp
  if (ulysses_ > 1) m.saved += q;                             // y by heads, and by rows
  // dy; of y, q, k and v; then parts of dq (ops/attention.h) and what is on its way around the ring, or dx
  // by q, k and v and two sums of those, less the normed input.
  const int64_t inputs = sequence_ ? 2 * gathered() : 4 * x();
  const int64_t attending =
      (longest_square() >= 512 ? 2 * q : 0) + (1 + travelling()) * seen() * kv() + wide_sums(q);
  m.working = x() + 2 * q + std::max(attending, own_kv + inputs) + dropped();
  m.deferred = normed() + 2 * q + own_kv + x() + gathered();  // normed, y, dq, dk, dv, dy and that gathered
  m.undropped = x();
  return m;
}

BranchMemory LayerMemory::mlp(int layer) const {
  if (c_.has_experts(layer)) return moe();
  const bool gated = c_.mlp == MlpKind::swiglu || c_.mlp == MlpKind::moe;
  BranchMemory m = dense(c_.mlp_width / tp_, gated);
  m.saved += norm() + x();
  m.working += x() + dropped() + reducing();
  m.deferred += normed() + x() + gathered();
  return m;
}

BranchMemory LayerMemory::dense(int64_t width, bool gated) const {
  const int64_t a = block(t_ * width);
  const int64_t h = gated ? block(2 * t_ * width) : a;
  // Beside what is saved da and dh, less a; of a GELU dh alone, which is there before a goes where rows come
  // in chunks.
  const int64_t working = gated || overlap_ ? h : 0;
  return {.saved = h + a, .working = working, .deferred = a + h, .undropped = a};
}

BranchMemory LayerMemory::mla() const {
  const int64_t heads = c_.heads / tp_;
  const int64_t q = block(t_ * heads * c_.head_dim);
  const int64_t y = block(t_ * heads * c_.mla.v_head_dim);
  const int64_t kv = block(t_ * heads * (c_.mla.qk_nope_head_dim + c_.mla.v_head_dim));
  const int64_t k_rope = block(t_ * c_.mla.qk_rope_head_dim);
  const int64_t stream = block(stream_rows());
  // Latents of the stream's rows and of all rows; without one queries come from the stream.
  const bool narrow_q = c_.mla.q_lora_rank > 0;
  const int64_t q_own = narrow_q ? block(stream_rows() * c_.mla.q_lora_rank) : 0;
  const int64_t q_all = narrow_q ? block(t_ * c_.mla.q_lora_rank) : block(t_ * c_.width);
  const int64_t kv_own = block(stream_rows() * c_.mla.kv_lora_rank);
  const int64_t kv_all = block(t_ * c_.mla.kv_lora_rank);
  const int64_t q_gathered = sequence_ ? q_all : 0;
  const int64_t kv_gathered = sequence_ ? kv_all : 0;

  BranchMemory m;
  // normed; latents before and behind their norms; q and k; v and y; log-sum-exp
  m.saved =
      norm() + x() + 2 * (q_own + kv_own) + (narrow_q ? 2 : 1) * stream + 2 * (q + y) + block(t_ * heads);
  if (ulysses_ > 1) m.saved += y;  // by heads, and by rows
  // dy; of y, v, q and k; then parts of dq and what is on its way around the ring, or the gradients of kv
  // and k_rope, and of one latent after the other.
  const int64_t attending =
      (longest_square() >= 512 ? 2 * q : 0) + (seen() - 1 + travelling() * seen()) * (q + y) + wide_sums(q);
  const int64_t queries = std::max(q_gathered + q_all, 2 * q_own + x());
  const int64_t keys = x() + std::max(kv_gathered + kv_all, 2 * kv_own);
  m.working = x() + 2 * (q + y) + std::max(attending, kv + k_rope + std::max(queries, keys)) + dropped();
  // normed, dy and that gathered, y, dq, dkv, dk_rope, latents and their gradients
  m.deferred =
      2 * x() + gathered() + y + q + kv + k_rope + (narrow_q ? q_all : q_gathered) + kv_all + q_own + kv_own;
  return m;
}

double LayerMemory::ranks_of_token() const {
  if (gathers_) return static_cast<double>(ep_);
  if (c_.moe.exact_sums) return c_.moe.top_k;  // a row for each
  double misses = 1;                           // that none of the K chosen is among one rank's experts
  const double local = static_cast<double>(c_.moe.experts) / ep_;
  for (int k = 0; k < c_.moe.top_k; ++k) {
    misses *= std::max(0.0, c_.moe.experts - local - k) / (c_.moe.experts - k);
  }
  return ep_ * (1 - misses);
}

BranchMemory LayerMemory::moe() const {
  const int64_t k = c_.moe.top_k;
  const int64_t width = c_.moe.expert_width / etp_;
  const auto own_rows = static_cast<int64_t>(static_cast<double>(own_) * ranks_of_token());
  const int64_t rows = own_rows * etp_;  // that ranks of etp gather
  // A rank that gathers from nobody has its own rows as they are; else [R, D].
  const bool alone = gathers_ && ep_ * etp_ == 1;
  const int64_t own_received = alone ? 0 : block(own_rows * c_.width);
  const int64_t received = alone ? 0 : block(rows * c_.width);
  const int64_t x_expert = block(rows * k * c_.width);   // [C, D]
  const int64_t a_expert = block(rows * k * width);      // [C, F]
  const int64_t h_expert = block(2 * rows * k * width);  // [C, 2F]
  const int64_t scores = block(own_ * c_.moe.experts);
  const int64_t index = 2 * block(rows * k, 8) + block(rows * k) + block(own_ * std::min<int64_t>(k, ep_), 8);
  const int64_t experts = received + h_expert + index;  // x, h; order, weights, handle
  const int64_t for_z_loss = c_.moe.z_loss != 0 ? scores + block(own_) : 0;
  const int64_t router = block(own_ * k, 8) + block(own_ * k) + scores + for_z_loss;
  const bool shares = c_.moe.shared_experts > 0;
  const BranchMemory shared = shares ? dense(c_.moe.shared_experts * width / tp_, true) : BranchMemory();
  // The shared experts compute while rows of dy travel; where none do, behind the others.
  const int64_t shared_then = shares && !alone ? x() - shared.saved : 0;

  BranchMemory m;
  m.saved = norm() + x() + router + experts + shared.saved;
  // While rows travel; then dy and da in expert order, of which come dh and the weighted a beside h; and in
  // the end the rows of dx travel back, when all that the experts saved is dropped.
  const int64_t sending = own_received + received + shared.working;
  const int64_t computing = received + x_expert + 2 * a_expert + h_expert + shared_then;
  const int64_t parts = etp_ > 1 ? received : 0;  // of own rows, from ranks of etp
  const int64_t returning = received + own_received + parts + x() - h_expert + shared_then;
  m.working = x() + dropped() + std::max({sending, computing, returning});
  m.deferred = 2 * x() + scores + x_expert + received + a_expert + h_expert + shared.deferred;
  m.undropped = shared.deferred;
  return m;
}

}  // namespace phalanx
