// Layer normalisation, J. Ba et al., 2016.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// y = (x − mean) / √(variance + eps) · w + b over each row of x [T, D]; w [D]; b [D] or an empty tensor, for
/// none. mean and inv_std [T] are kept for backward.
struct LayerNormed {
  Tensor y_TD;
  Tensor mean_T;
  Tensor inv_std_T;
};
LayerNormed layernorm(const Tensor& x_TD, const Tensor& w_D, const Tensor& b_D, double eps);
/// What backward adds to: gradients of weight and bias [D] (db may be empty), and to dx `also` [T, D] (may be
/// empty), what x has from elsewhere.
struct LayerNormSums {
  Tensor dw_D;
  Tensor db_D;
  Tensor also_TD = {};
};
/// Gives dx. `kept` needs no y.
Tensor layernorm_backward(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& w_D, const LayerNormed& kept,
                          const LayerNormSums& sums);

}  // namespace phalanx
