// Linear layers that read the same rows.
#pragma once

#include <span>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// One of them: y [M, N] = x [M, K] · w[N, K]ᵀ + b [N] + also [M, N]; b and `also` may be empty.
struct LinearOf {
  Tensor y_MN;
  Tensor w_NK;
  Tensor b_N;
  Tensor also_MN;
};

/// What rows are still to be normed by, as rmsnorm does; without w they are not.
struct RowNorm {
  Tensor w_K;
  double eps = 0;
};

/// Computes all of them. On a GPU few rows take one launch, in which the weights stream by.
void linears_into(const Tensor& x_MK, std::span<const LinearOf> linears, const RowNorm& norm = {});

}  // namespace phalanx
