// The products beside a GELU, which on a GPU make it as they write their results.
#pragma once

#include "phalanx/ops/gelu.h"

namespace phalanx {

/// Rows before a GELU and behind it, h and a = gelu(h).
struct GeluRows {
  Tensor h;
  Tensor a;
};

/// out [M, N] = x [M, K] · w[N, K]ᵀ + b [N], which may be empty, and its GELU. In bf16 on a GPU, with tanh,
/// by one product.
void linear_gelu_into(const GeluRows& out_MN, const Tensor& x_MK, const Tensor& w_NK, const Tensor& b_N,
                      Gelu kind);
/// dh [M, K] = (dy [M, N] · w [N, K]) · gelu'(h), elementwise: of y = gelu(h) · wᵀ.
void matmul_gelu_backward_into(Tensor dh_MK, const Tensor& dy_MN, const Tensor& w_NK, const Tensor& h_MK,
                               Gelu kind);

}  // namespace phalanx
