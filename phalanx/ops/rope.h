// Rotary positions, J. Su et al., "RoFormer", 2021; halves rotated as in Hugging Face's Llama.
#pragma once

#include <vector>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// How fast the pairs of a head turn, computed once: pair i by the angle position · frequencies[i].
struct Rotation {
  std::vector<double> frequencies;  ///< radians a position

  /// Columns that turn: two for each pair.
  int64_t columns() const { return 2 * std::ssize(frequencies); }
  friend bool operator==(const Rotation&, const Rotation&) = default;
};
/// Of `columns` columns (an even number): pair i turns by theta^(−2i/columns).
Rotation rotation(double theta, int64_t columns);

/// Rotates the last r = rotation.columns() columns of each head of x [T, heads · head_dim] in place by its
/// row's position (i32 [T]); among them column i and column i + r/2 are a pair. Angles in f64, so that rows
/// of different slices agree bitwise.
void rope_into(Tensor x_THd, const Tensor& positions, int64_t head_dim, const Rotation& rotation);
/// The inverse rotation: turns the gradient of the rotated tensor into that of the unrotated one, in place.
void rope_backward_into(Tensor dx_THd, const Tensor& positions, int64_t head_dim, const Rotation& rotation);

}  // namespace phalanx
