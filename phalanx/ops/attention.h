// Causal attention with grouped KV heads, computed blockwise: the T×T matrix is never in memory.
// T. Dao, "FlashAttention-2", 2023; J. Ainslie et al., "GQA", 2023.
#pragma once

#include <span>

#include "phalanx/ops/attention_tiles.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// H query heads share G KV heads (G divides H): query head h reads KV head h / (H/G). A head of q and k has
/// d = head_dim columns, one of v and y has e, which may differ (DeepSeek-V2, 2024, section 2.1); names say d
/// for both.
struct AttentionConfig {
  int heads = 0;
  int kv_heads = 0;
  int64_t head_dim = 0;
  double scale = 0;       ///< of the scores; usually 1/√head_dim
  int64_t value_dim = 0;  ///< e; 0: head_dim
  /// Backward gives the same bits each time. It always does but in bf16, where false is faster and takes less
  /// memory.
  bool deterministic = true;

  int64_t values() const { return value_dim > 0 ? value_dim : head_dim; }
};

/// What attention gives: y [T, H·e], and the log-sum-exp (natural) of each row's scaled scores, kept for
/// backward; in f32 where y is bf16.
struct Attended {
  Tensor y_THd;
  Tensor log_sum_exp_TH;
};
/// q [T, H·d], k [T, G·d] and v [T, G·e] (f32 or f64, all alike; on a GPU also bf16) hold B sequences one
/// after the other; sequence b is rows sequence_offsets[b] … sequence_offsets[b+1]−1 (i64 [B+1], from 0 to T;
/// on the host) and attends to itself alone, each row to itself and the rows before it. A sequence's results
/// depend on nothing else, bitwise; in bf16 the other sequences' lengths may change how its sums are rounded.
///
/// bf16 goes to cuDNN: probabilities and the gradients of scores are rounded to bf16, sums are in f32. Error
/// unless d and e are multiples of 8 up to 256; backward, up to 128, or d up to 192 with e from 72 to 128.
Attended attention(const Tensor& q_THd, const Tensor& k_TGd, const Tensor& v_TGd,
                   const Tensor& sequence_offsets, const AttentionConfig& config);

/// Gradients of attention's inputs.
struct AttentionGradients {
  Tensor dq_THd;
  Tensor dk_TGd;
  Tensor dv_TGd;
};
/// From the gradient of y, the inputs and what the forward gave. Deterministic: sums run in a fixed order.
/// Sequences of 512 rows and more take memory of up to twice dq for the time of the call, so that threads can
/// share them. In bf16 the gradients of scores take 2 bytes each, up to 1 GiB in all, or those of the heads
/// of one KV head for one sequence if that is more; without config.deterministic, dq once in f32 instead.
AttentionGradients attention_backward(const Tensor& dy_THd, const Tensor& q_THd, const Tensor& k_TGd,
                                      const Tensor& v_TGd, const Attended& forward,
                                      const Tensor& sequence_offsets, const AttentionConfig& config);

/// Attention in parts, where keys come one block after the other (ring attention): S rows of k and v, and
/// tiles that say which rows of q see which of them (attention_tiles.h). Parts add up: y is the mean of v
/// over the keys seen so far, its weights sum to one at their log-sum-exp.
///
/// What rows have that have seen no keys: y 0, log-sum-exp −∞. Sums over bf16 are f32.
Attended attended_nothing(const Tensor& q_THd, const AttentionConfig& config);
/// Adds the keys of `tiles` to what `sums` holds. Over bf16, y may be f32 or bf16, which is rounded with each
/// block of keys.
void attention_into(const Attended& sums, const Tensor& q_THd, const Tensor& k_SGd, const Tensor& v_SGd,
                    const AttentionTiles& tiles, const AttentionConfig& config);

/// What backward takes: the gradient of y, the inputs, and what the forward gave, over all keys; all but the
/// log-sum-exp alike, so a sum in f32 over bf16 is narrowed first.
struct AttentionBackward {
  Tensor dy_THd;
  Tensor q_THd;
  Tensor k_SGd;
  Tensor v_SGd;
  Attended forward;
};
/// Adds what the keys of `tiles` give to the gradients. Deterministic, memory as above. Over bf16, gradients
/// may be f32 or bf16, which is rounded with each addition; the parts that are added are bf16.
void attention_backward_into(const AttentionGradients& sums, const AttentionBackward& in,
                             const AttentionTiles& tiles, const AttentionConfig& config);

/// A run of cached keys [n, G·d] and values [n, G·e]; row i stands at position first_position + i.
struct KvSegment {
  Tensor k_SGd;
  Tensor v_SGd;
  int64_t first_position = 0;
};
/// Decoding: query row i, at position positions[i] (i32 [T]), attends to all rows of `segments` at positions
/// ≤ its own, in one softmax. Gives y [T, H·e]; a row that sees none is zero. Forward only. f32 or f64; on a
/// GPU also bf16.
Tensor attention_over_segments(const Tensor& q_THd, const Tensor& positions,
                               std::span<const KvSegment> segments, const AttentionConfig& config);

}  // namespace phalanx
