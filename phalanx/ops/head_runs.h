// Rows of heads as messages to the ranks that take them, and back (DeepSpeed-Ulysses, Jacobs et al. 2023,
// section 3.1).
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// H heads go to R ranks in min(H, R) runs of as many neighbouring heads each: rank r takes run
/// r · runs / R, so that neighbours share one where ranks are more than heads. R divides H, or H divides R.
///
/// x [T, H·d] → [R·T, H/runs · d]: for each rank, in their order, the columns of its run. Any dtype; on a GPU
/// f32, f64 or bf16.
Tensor pack_heads(const Tensor& x_THd, int heads, int ranks);
/// The reverse: y [R·T, H/runs · d] → [T, H·d] (f32 or f64, on a GPU also bf16). What several ranks have for
/// one run is summed, in rank order; of bf16 in f32, rounded once.
Tensor unpack_heads(const Tensor& y, int heads, int ranks);

}  // namespace phalanx
