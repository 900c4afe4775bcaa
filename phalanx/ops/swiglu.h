// SwiGLU, N. Shazeer, "GLU variants improve Transformer", 2020.
#pragma once

#include "phalanx/tensor/rows.h"

namespace phalanx {

/// gate_up [R, 2F] (gate first, then up) → silu(gate) · up, [R, F].
Rows swiglu(const Rows& gate_up);
/// Gives the gradient of gate_up.
Rows swiglu_backward(const Rows& dy_RF, const Rows& gate_up);

}  // namespace phalanx
