// Elementwise sums and scaling.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// a + b, equal shapes and dtypes.
Tensor add(const Tensor& a, const Tensor& b);
/// x += y, equal shapes and dtypes.
void add_into(Tensor x, const Tensor& y);
/// sum += x; an undefined sum becomes x, whose memory it takes over.
void accumulate(Tensor& sum, const Tensor& x);
/// x *= factor.
void scale_into(Tensor x, double factor);
/// Σ x², f64 [1].
Tensor sum_of_squares(const Tensor& x);

}  // namespace phalanx
