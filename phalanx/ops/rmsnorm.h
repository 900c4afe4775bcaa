// Root-mean-square normalisation, B. Zhang and R. Sennrich, 2019.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// y = x · w / √(mean(x²) + eps) over each row of x [T, D]; w [D]. inv_rms [T] is kept for backward.
struct RmsNormed {
  Tensor y_TD;
  Tensor inv_rms_T;
};
RmsNormed rmsnorm(const Tensor& x_TD, const Tensor& w_D, double eps);
/// Gives dx, plus `also` [T, D] (may be empty): what x has from elsewhere; dw [D] += the weight's gradient.
Tensor rmsnorm_backward(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& w_D, const Tensor& inv_rms_T,
                        Tensor dw_D, const Tensor& also_TD = {});

}  // namespace phalanx
