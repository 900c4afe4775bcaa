// Between the dtype of arithmetic and a narrower one in which values are kept and sent.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// bf16 y [n] from f32 or f64 x [n]: to nearest, ties to even (f64 by way of f32). Of another device's, what
/// travels is rounded.
void narrow_into(Tensor y, const Tensor& x);
/// f32 or f64 y [n] from bf16 x [n]: exact.
void widen_into(Tensor y, const Tensor& x);

}  // namespace phalanx
