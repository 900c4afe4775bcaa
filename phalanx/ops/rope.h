// Rotary positions, J. Su et al., "RoFormer", 2021; halves rotated as in Hugging Face's Llama.
#pragma once

#include <vector>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// YaRN (B. Peng et al., 2023, section 3): contexts `factor` times as long as `original_context`, on which
/// the frequencies were trained. Pairs that turn at least beta_fast times in it keep their frequency, those
/// that turn at most beta_slow times have it divided by `factor`, a ramp between. What is rotated grows by
/// m(mscale) / m(mscale_all_dim), or by m(1) unless both are above 0, with m(x) = 0.1 x ln(factor) + 1.
struct Yarn {
  double factor = 1;  ///< 1: none of all this
  double original_context = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 0;
  double mscale_all_dim = 0;
};
/// What DeepSeek's attention multiplies its scores by besides: m(mscale_all_dim)².
double score_factor(const Yarn& yarn);

/// How fast the pairs of a head turn, computed once: pair i by the angle position · frequencies[i].
struct Rotation {
  std::vector<double> frequencies;  ///< radians a position
  double factor = 1;                ///< of what is rotated

  /// Columns that turn: two for each pair.
  int64_t columns() const { return 2 * std::ssize(frequencies); }
  friend bool operator==(const Rotation&, const Rotation&) = default;
};
/// Of `columns` columns (an even number): pair i turns by theta^(−2i/columns), as YaRN changes it.
Rotation rotation(double theta, int64_t columns, const Yarn& yarn = {});

/// Rotates the last r = rotation.columns() columns of each head of x [T, heads · head_dim] in place by its
/// row's position (i32 [T]); among them column i and column i + r/2 are a pair. Angles in f64, so that rows
/// of different slices agree bitwise.
void rope_into(Tensor x_THd, const Tensor& positions, int64_t head_dim, const Rotation& rotation);
/// The inverse rotation, times the same factor: turns the gradient of the rotated tensor into that of the
/// unrotated one, in place.
void rope_backward_into(Tensor dx_THd, const Tensor& positions, int64_t head_dim, const Rotation& rotation);

}  // namespace phalanx
