// Factors and products in FP8 of experts (fp8.h, fp8_matmul.h): rows grouped by expert, offsets [E + 1] as
// matmul.h has them, read on the device.
//
// Forward, y = x·wᵀ, and the input's gradient take rows as they lie, and each expert's blocks. A weight's
// gradient sums over an expert's tokens, and wants them in columns: each expert's begin at a multiple of 128,
// so that none of its scales and stages of a product is another's.
//
// R received rows, D width, C columns' capacity, E experts, S groups of 128 terms
#pragma once

#include "phalanx/ops/fp8_matmul.h"

namespace phalanx {

/// Rows in FP8, of which the first `live` count (rows.h): q and scales of those behind are undefined.
struct Fp8Rows {
  Fp8Lines lines;  // q [R, D]
  Tensor live;
};

/// The live rows of x.
Fp8Rows fp8_rows(const Rows& x_RD, ScaleFormat format);

/// Terms of columns by expert that hold `rows` rows, however they are shared out.
inline int64_t fp8_columns_capacity(int64_t rows, int64_t experts) {
  return scale_groups(rows + (kScaleGroup - 1) * experts) * kScaleGroup;
}

/// The columns of x by expert: q [D, C], C = fp8_columns_capacity(R, E), scales [C / 128, ..]. Tokens of
/// expert e begin at the sum of those of all experts before it, each rounded up to 128; behind its last up to
/// there is 0. Within an expert these are the bits of fp8_columns of its rows. What lies behind the last
/// expert's is undefined.
Fp8Lines fp8_grouped_columns(const Rows& x_RD, const Tensor& offsets, ScaleFormat format);

/// The same from rows whose scales are powers of two, with as little loss as fp8_columns has.
Fp8Lines fp8_grouped_columns(const Fp8Rows& x_RD, const Tensor& offsets);

/// The experts' rows and their columns, in one reading of x. Rows of no expert are left alone.
struct Fp8GroupedRowsAndColumns {
  Fp8Rows rows;
  Fp8Lines columns;
};
Fp8GroupedRowsAndColumns fp8_grouped_rows_and_columns(const Rows& x_RD, const Tensor& offsets,
                                                      ScaleFormat format);

// The products, with fp8_matmul.h's sums and into its dtypes. Rows of no expert are left alone; an expert's
// bits do not depend on the others. On a GPU: sm_90, at most 256 experts (Error).

/// y [R, N]: rows of expert e are x · w[e]ᵀ, w [E, N, K]. On a GPU K is a multiple of kTermPad, not 0
/// (Error).
Rows fp8_grouped_matmul_nt(const Fp8Rows& x_RK, const Fp8Blocks& w_ENK, const Tensor& offsets, DType dtype);

/// dw [E, N, K] (+)= dyᵀ · x of each expert, from their columns by expert; offsets are those that these were
/// made with. Of an expert without tokens it is 0, or left alone.
void fp8_grouped_matmul_tn_into(Tensor dw_ENK, const Fp8Lines& dy_NC, const Fp8Lines& x_KC,
                                const Tensor& offsets, Into into);

}  // namespace phalanx
