// Factors of FP8 products for training (DeepSeek-V3 technical report, 2024, section 3.3): f8e4m3 everywhere;
// activations and gradients with a scale for 128 of a row's elements, weights with one for 128 × 128.
//
// The products (fp8_matmul.h) sum over elements that lie behind one another. Forward, y = x·wᵀ sums over
// columns: the rows of x, and w as it is. The input's gradient dy·w: the rows of dy, and w transposed. The
// weight's gradient dyᵀ·x sums over tokens: the columns of both.
//
// How scales are found and values rounded is quantize.h's, but that a group's largest magnitude counts as
// 2^-100 at least, not 1e-4: gradients are often below that. Scales are f32 here, whatever the format;
// ScaleFormat::ue8m0 makes them powers of two. Inputs are f32 or bf16.
#pragma once

#include "phalanx/ops/quantize.h"

namespace phalanx {

/// Lines of terms, each with its scales: value[r, k] ≈ q[r, k] · scales[k / 128, r].
struct Fp8Lines {
  Tensor q_RK;       // f8e4m3
  Tensor scales_SR;  // f32 [⌈K / 128⌉, R rounded up to kScalePad]; 0 behind the last line
  ScaleFormat format = ScaleFormat::f32;
};

/// A matrix with a scale for each block: w[n, k] ≈ q[n, k] · scales[n / 128, k / 128]. Or several, each by
/// itself: q [E, N, K], scales [E, ..].
struct Fp8Blocks {
  Tensor q_NK;    // f8e4m3
  Tensor scales;  // f32 [⌈N / 128⌉, ⌈K / 128⌉]
};

/// Scales of so many lines are 16 bytes, and so is this number of terms, as TMA wants them.
inline constexpr int64_t kScalePad = 4;
inline constexpr int64_t kTermPad = 16;

/// The shape of the scales of so many lines, each of so many groups of terms.
inline Shape padded_scales(int64_t groups, int64_t lines) {
  return {groups, (lines + kScalePad - 1) / kScalePad * kScalePad};
}

/// The rows of x [T, D]: q [T, D].
Fp8Lines fp8_rows(const Tensor& x_TD, ScaleFormat format);

/// The columns of x [T, D], with a scale for 128 tokens: q [D, T rounded up to kTermPad], 0 behind the last.
Fp8Lines fp8_columns(const Tensor& x_TD, ScaleFormat format);

/// The columns of x from its rows, whose scales are powers of two. A value is then four bits times a power
/// of two, and the new scale changes only that power: values are unchanged, unless they are below 2^-6 new
/// scales (that is, a / 14336 or less, with a the largest of 128 tokens), where the last bits of f8e4m3's
/// subnormals are lost, 2^-10 new scales at most. With other scales values would be rounded twice.
Fp8Lines fp8_columns(const Fp8Lines& rows);

/// Both, in one reading of x.
struct Fp8RowsAndColumns {
  Fp8Lines rows;
  Fp8Lines columns;
};
Fp8RowsAndColumns fp8_rows_and_columns(const Tensor& x_TD, ScaleFormat format);

/// The blocks of a weight [N, K], or of experts' [E, N, K]: q has w's shape.
Fp8Blocks fp8_blocks(const Tensor& w_NK, ScaleFormat format);

/// q [K, N], or [E, K, N], with the scales transposed: exact.
Fp8Blocks fp8_transposed(const Fp8Blocks& w);

/// The transposed blocks of w in one reading of it: the bits of fp8_transposed(fp8_blocks(w, format)).
Fp8Blocks fp8_blocks_transposed(const Tensor& w_NK, ScaleFormat format);

}  // namespace phalanx
