// SwiGLU, N. Shazeer, "GLU variants improve Transformer", 2020.
#pragma once

#include "phalanx/ops/permute.h"

namespace phalanx {

/// gate_up [R, 2F] (gate first, then up) → silu(gate) · up, [R, F].
Rows swiglu(const Rows& gate_up);
/// Gives the gradient of gate_up.
Rows swiglu_backward(const Rows& dy_RF, const Rows& gate_up);

/// Gradients where slots' rows y = swiglu(gate_up), in expert order, count by their weights.
struct WeightedSwigluGradients {
  Rows gate_up;
  Tensor weights_RK;  // ⟨dy, y⟩; 0 where a slot names none
  Rows weighted_CF;   // weight · y, made again: what the weights behind meet in their gradient
};
/// dy is the gradient of weight · y, of each slot before its weight.
WeightedSwigluGradients weighted_swiglu_backward(const Rows& dy_CF, const Rows& gate_up,
                                                 const ExpertOrder& order, const Tensor& weights_RK);

}  // namespace phalanx
