// Context parallelism: ranks of cp share out the rows of a microbatch (context_rows.h), and so long sequences
// and their activations. Only attention looks at other rows. There cp = ring × ulysses (USP, Fang & Zhao
// 2024): the ranks of a Ulysses group change from their rows to heads and back (DeepSpeed-Ulysses, Jacobs et
// al. 2023, section 3.1), so that each has all rows of the group and some heads; between groups keys and
// values go around a ring (ring_attention.h). A causal mask costs all ranks alike.
//
// Bytes of Ulysses: with n = (u − 1)/u · T/cp elements of width one and u = ulysses, a microbatch sends from
// each rank, for each layer of H heads and G KV heads, d columns of q and k and e of v and y,
// 2 · n · (H + max(G, u)) · (d + e): q, k, v and y forward, their gradients backward. Where there are fewer
// KV heads than ranks, neighbours share one and it is sent to each. A ring of several ranks adds
// (3·ring − 2) · T/ring · max(G/u, 1) · (d + e) elements (ring_attention.h).
#pragma once

#include "phalanx/base/task.h"
#include "phalanx/comm/mesh.h"
#include "phalanx/parallel/context_rows.h"
#include "phalanx/parallel/ring_attention.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Attention of this rank's rows, and what its backward needs: q, k and v of its heads, and what they gave.
struct AttendedRows {
  Tensor q_THd;
  Tensor k_TGd;
  Tensor v_TGd;
  Attended by_heads;
  Tensor y_THd;  ///< of its rows
};

class ContextParallel {
 public:
  /// `ulysses` divides cp. Collective over cp.
  ContextParallel(Mesh& mesh, int ulysses);

  const ContextShare& share() const { return share_; }
  /// Of so many heads, those that a rank has inside attention.
  int heads(int all) const { return std::max(all / share_.ulysses, 1); }

  /// x [T/cp, heads · d] of this rank's rows → [T/ring, heads(heads) · d] of its Ulysses group's.
  Task<Tensor> to_heads(Tensor x, int heads);
  /// The reverse, and its backward: y [T/ring, heads(heads) · d] → [T/cp, heads · d]. What ranks that share a
  /// head send for it is summed.
  Task<Tensor> to_rows(Tensor y, int heads);

  /// As attention() and attention_backward() (ops/attention.h), of the rows and heads of all ranks of cp:
  /// each gives its rows, [T/cp, …] with the heads of `config`. Of a slice, also of the keys and values of
  /// the slices before it, and with their gradients (ring_attention.h).
  Task<AttendedRows> attend(Tensor q_THd, Tensor k_TGd, Tensor v_TGd, SequenceRows rows,
                            AttentionConfig config);
  Task<AttentionGradients> attend_backward(Tensor dy_THd, AttendedRows attended, SequenceRows rows,
                                           AttentionConfig config);

  /// offsets i64 [B+1] of sequences in T rows → those of their parts in the own rows.
  Tensor own_offsets(const Tensor& offsets) const;

 private:
  AttentionConfig own_heads(AttentionConfig all) const;

  ContextShare share_;
  Group& ulysses_;
  RingAttention ring_;
};

}  // namespace phalanx
