// One update of flat parameters.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// AdamW, I. Loshchilov and F. Hutter, 2019: decoupled weight decay.
struct AdamWStep {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;  ///< of this update, from 1: the bias correction
};
/// Updates w, m and v [n] in place from gradient g [n], times `gradient_scale` (clipping).
void adamw_into(Tensor w, Tensor m, Tensor v, const Tensor& g, double gradient_scale, const AdamWStep& step);
/// w −= lr · gradient_scale · g.
void sgd_into(Tensor w, const Tensor& g, double gradient_scale, double lr);

}  // namespace phalanx
