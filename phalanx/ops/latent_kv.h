// Keys and values of multi-head latent attention (DeepSeek-V2, 2024, section 2.1): each head has its own
// columns of k and v, made from the latents, and all heads share the columns of k that turn with the
// position.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Columns: of a head those of k that do not turn and those of v, which stand one behind the other in kv; and
/// those of k that turn.
struct LatentHeads {
  int64_t heads = 0;
  int64_t nope = 0;
  int64_t rope = 0;
  int64_t values = 0;
};

/// k [T, heads · (nope + rope)] and v [T, heads · values].
struct KeysAndValues {
  Tensor k_THd;
  Tensor v_THd;
};
/// From kv [T, heads · (nope + values)] and the shared columns k_rope [T, rope], which are copied to each
/// head.
KeysAndValues expand_kv(const Tensor& kv_THd, const Tensor& k_rope_Td, const LatentHeads& shape);

/// Gradients of expand_kv's inputs; that of k_rope is the sum over heads, in their order.
struct LatentGradients {
  Tensor dkv_THd;
  Tensor dk_rope_Td;
};
LatentGradients expand_kv_backward(const Tensor& dk_THd, const Tensor& dv_THd, const LatentHeads& shape);

}  // namespace phalanx
