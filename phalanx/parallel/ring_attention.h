// Ring attention (Liu et al. 2023): each rank keeps the rows of its queries, and blocks of keys and values
// travel around the ring, the next one while the present one is computed on. What a rank has seen adds up by
// y and its log-sum-exp (ops/attention.h). Backward the blocks travel again, and the gradients of each with
// it, one step behind, until they come home. What a rank's rows do not see of a block is not computed.
//
// Bytes: a block is B = T/ring · G · (d + e) elements of k and v, of T rows and G KV heads, d columns of k
// and e of v. A rank sends B · (ring − 1) forward, and B · (2·ring − 1) backward, ring of them gradients.
// Over bf16 sums of several parts are f32, gradients on their way too, and are rounded once, in the end. Of a
// microbatch cut into slices of T rows, with slice s (from 0) travel the blocks of those before it: s + 1
// times as much.
#pragma once

#include "phalanx/base/task.h"
#include "phalanx/comm/group.h"
#include "phalanx/ops/attention.h"
#include "phalanx/parallel/kv_history.h"

namespace phalanx {

class RingAttention {
 public:
  /// Ring rank r has the rows ring_rows(T, ring, r) (context_rows.h). The group outlives this.
  explicit RingAttention(Group& ring) : ring_(ring) {}

  /// As attention() and attention_backward(), of this rank's rows, T/ring of them, and of the slices before
  /// them. With one rank and one slice it is those. Forward leaves k and v in the history; backward takes
  /// them from it, with the gradients that they have from the slices behind, and adds to the others'.
  Task<Attended> forward(Tensor q_THd, Tensor k_TGd, Tensor v_TGd, SequenceRows rows, AttentionConfig config);
  Task<AttentionGradients> backward(AttentionBackward in, SequenceRows rows, AttentionConfig config);

 private:
  Group& ring_;
};

}  // namespace phalanx
