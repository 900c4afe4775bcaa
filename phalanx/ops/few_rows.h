// Products of few rows on a GPU, as decoding has them: the weights are read once, and that is all there is.
#pragma once

#include <span>

#include "phalanx/ops/linears.h"

namespace phalanx::cuda {

/// Rows that a product has at most to be one of these.
inline constexpr int64_t kFewRows = 64;
/// And where they are still to be normed.
inline constexpr int64_t kFewNormedRows = 16;

/// The linear layers of x [M, K], normed at first if `norm` has weights, in one launch, sums in f32, the same
/// bits each time, whatever the other rows and layers; y may be f32. False, and nothing is done, unless x is
/// bf16 of at most kFewRows rows, whole 16 bytes each, and the GPU one of sm_90.
bool multiply_few_rows(const Tensor& x_MK, std::span<const LinearOf> linears, const RowNorm& norm = {});

/// a [M, F] = silu(gate) · up, where those are the halves of what w [2F, K] and b [2F] (which may be empty)
/// make of x; they are not rounded. Else as above.
bool multiply_few_rows_swiglu(const Tensor& a_MF, const Tensor& x_MK, const Tensor& w, const Tensor& b,
                              const RowNorm& norm = {});

}  // namespace phalanx::cuda
