// One update of flat parameters.
#pragma once

#include "phalanx/base/philox.h"
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
/// What an update reads and writes, [n] each: weights, moments and the gradient, f32 or f64; with f32 the
/// moments may be bf16, and on a GPU the gradient, too. `narrow`, bf16: the new weights, rounded; or none.
struct AdamWTensors {
  Tensor w;
  Tensor m;
  Tensor v;
  Tensor g;
  Tensor narrow = {};
};
/// Updates w, m and v in place from the gradient times `gradient_scale` (clipping). Moments of bf16 are
/// rounded to nearest once w is updated from what they were before that (DeepSeek-V3, section 3.3.3). Of f32
/// a GPU moves 28 bytes an element, with a narrow copy 30, 2 less of a bf16 gradient and 8 less of bf16
/// moments.
void adamw_into(const AdamWTensors& tensors, double gradient_scale, const AdamWStep& step);
/// How weights are updated of which there is no copy but in bf16: each is rounded to one of its two
/// neighbours, with the probabilities that keep its mean, so that updates below its last place are not lost
/// (stochastic rounding; S. Gupta et al., Deep Learning with Limited Numerical Precision, 2015, section 3).
/// Weight i stands in row r = i / columns, column c of a larger tensor and draws the upper half of
/// stream.bits(first + r · row_step + c, step).
struct StochasticRounding {
  RandomStream stream;
  uint64_t step = 0;
  int64_t first = 0;
  int64_t columns = 1;
  int64_t row_step = 1;
};
/// The same update of w in bf16, in the arithmetic of f32; no `narrow`. Of f32 gradients and moments a GPU
/// moves 24 bytes an element.
void adamw_into(const AdamWTensors& tensors, double gradient_scale, const AdamWStep& step,
                const StochasticRounding& rounding);
/// w −= lr · gradient_scale · g.
void sgd_into(Tensor w, const Tensor& g, double gradient_scale, double lr);

}  // namespace phalanx
