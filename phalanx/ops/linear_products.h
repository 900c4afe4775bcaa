// The three products of a linear layer y = x·wᵀ, in the dtype of its rows or in FP8 (DeepSeek-V3 technical
// report, 2024, section 3.3): forward and the input's gradient of rows with a scale for 128 elements and of
// weights with one for 128 × 128, the weight's gradient of columns with a scale for 128 tokens.
#pragma once

#include "phalanx/ops/fp8_matmul.h"

namespace phalanx {

enum class Products : uint8_t { same, fp8 };

/// A layer's input [M, K] as forward multiplies and backward keeps it: as it is, or in FP8 alone.
struct LinearRows {
  Tensor x_MK;
  Fp8Lines fp8 = {};  // where x is empty

  int64_t rows() const { return x_MK.defined() ? x_MK.rows() : fp8.q_RK.rows(); }
  /// Those rows; where it is in FP8, all of them.
  LinearRows slice(int64_t begin, int64_t end) const;
};
/// x in FP8. Scales are powers of two, so that the columns are made of the rows (fp8_columns).
LinearRows fp8_input(const Tensor& x_MK);

/// The gradient of a layer's result [M, N], as backward multiplies it: as it is, or in FP8 by rows and
/// columns.
struct LinearGradient {
  Tensor dy_MN;
  Fp8RowsAndColumns fp8 = {};  // where dy is empty

  LinearGradient slice(int64_t begin, int64_t end) const;
};
LinearGradient fp8_gradient(const Tensor& dy_MN);

/// A layer's weight [N, K] as the products of one direction multiply by it, in FP8 quantised once for all.
class LinearWeight {
 public:
  static LinearWeight forward(Tensor w_NK, Products products);
  static LinearWeight backward(Tensor w_NK, Products products);

  const Tensor& w_NK() const { return w_NK_; }
  /// y [M, N] (+)= x · wᵀ. Of forward's; what is not yet in FP8 is quantised here.
  void multiply(const Tensor& y_MN, const LinearRows& x, Into into) const;
  /// dx [M, K] (+)= dy · w. Of backward's.
  void multiply(const Tensor& dx_MK, const LinearGradient& dy, Into into) const;

 private:
  LinearWeight(Tensor w_NK, Products products) : w_NK_(std::move(w_NK)), products_(products) {}

  Tensor w_NK_;
  Products products_;
  Fp8Blocks blocks_;  // backward's: transposed
};

/// dw [N, K] (+)= dyᵀ · x.
void linear_gradient_into(const Tensor& dw_NK, const LinearGradient& dy, const LinearRows& x,
                          Products products, Into into);

}  // namespace phalanx
