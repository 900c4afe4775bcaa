// The products of experts' linear layers, y = x·w[e]ᵀ for the rows of expert e, in the dtype of their rows or
// in FP8 (linear_products.h; offsets as matmul.h has them).
#pragma once

#include "phalanx/ops/fp8_grouped.h"
#include "phalanx/ops/linear_products.h"

namespace phalanx {

/// The gradient of a layer's result, rows in expert order, as backward multiplies it: as it is, or in FP8 by
/// rows and columns.
struct ExpertRowsGradient {
  Rows dy_RN;
  Fp8GroupedRowsAndColumns fp8 = {};  // where dy is empty
};
ExpertRowsGradient expert_gradient(Rows dy_RN, const Tensor& offsets, Products products);

/// Experts' weights [E, N, K] as the products of one direction multiply by them.
class ExpertWeight {
 public:
  static ExpertWeight forward(Tensor w_ENK, Products products);
  static ExpertWeight backward(Tensor w_ENK, Products products);

  /// x · wᵀ, of forward's: [R, N].
  Rows multiply(const Rows& x_RK, const Tensor& offsets) const;
  /// dy · w, of backward's: [R, K].
  Rows multiply(const ExpertRowsGradient& dy, const Tensor& offsets) const;

 private:
  ExpertWeight(Tensor w_ENK, Products products) : w_ENK_(std::move(w_ENK)), products_(products) {}

  Tensor w_ENK_;
  Products products_;
  Fp8Blocks blocks_;  // backward's: transposed
};

/// dw [E, N, K] (+)= dyᵀ · x of each expert's rows.
void expert_gradient_into(const Tensor& dw_ENK, const ExpertRowsGradient& dy, const Rows& x_RK,
                          const Tensor& offsets, Products products, Into into);

}  // namespace phalanx
