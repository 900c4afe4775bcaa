// The Gaussian error linear unit, D. Hendrycks and K. Gimpel, 2016.
#pragma once

#include <cstdint>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// erf: x·Φ(x), exact. tanh: GPT-2's approximation x/2·(1 + tanh(√(2/π)(x + 0.044715x³))).
enum class Gelu : uint8_t { erf, tanh };

/// Elementwise, any shape. f32 errors, measured against f64 with fused multiply-add: erf relative 2^-20 at
/// most, far into the tail, and 2.5 units of the last place for x ≥ 0.5; tanh 3 units for x ≥ −1, below that
/// growing with the exponent.
Tensor gelu(const Tensor& x, Gelu kind);
/// dy · gelu'(x).
Tensor gelu_backward(const Tensor& dy, const Tensor& x, Gelu kind);
/// The same to y; and to dx, which may be dy.
void gelu_into(Tensor y, const Tensor& x, Gelu kind);
void gelu_backward_into(Tensor dx, const Tensor& dy, const Tensor& x, Gelu kind);

}  // namespace phalanx
