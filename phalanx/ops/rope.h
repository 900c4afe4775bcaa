// Rotary positions, J. Su et al., "RoFormer", 2021; halves rotated as in Hugging Face's Llama.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Rotates each head of x [T, heads · d] in place by its row's position (i32 [T]): the pair (x[i], x[i +
/// d/2]) by the angle position · theta^(−2i/d). Angles in f64, so that rows of different slices agree
/// bitwise.
void rope_into(Tensor x_THd, const Tensor& positions, int64_t head_dim, double theta);
/// The inverse rotation: turns the gradient of the rotated tensor into that of the unrotated one, in place.
void rope_backward_into(Tensor dx_THd, const Tensor& positions, int64_t head_dim, double theta);

}  // namespace phalanx
