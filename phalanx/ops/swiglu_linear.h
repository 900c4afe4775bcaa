// The product before a SwiGLU, where nothing is kept for backward.
#pragma once

#include "phalanx/ops/linears.h"

namespace phalanx {

/// x [M, K], w [2F, K] and b [2F], which may be empty → silu(gate) · up [M, F], gate and up the halves of
/// x · wᵀ + b; x is normed at first if `norm` has weights. On a GPU few rows, and very many, take one launch
/// of a product.
Tensor linear_swiglu(const Tensor& x_MK, const Tensor& w, const Tensor& b, const RowNorm& norm = {});

}  // namespace phalanx
