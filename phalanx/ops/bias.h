// The bias of a linear layer.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// y [T, N] += b [N], each row.
void add_bias_into(Tensor y_TN, const Tensor& b_N);
/// db [N] += Σ over rows of dy [T, N], in row order of fixed blocks (bits do not depend on threads).
void bias_backward_into(Tensor db_N, const Tensor& dy_TN);

}  // namespace phalanx
