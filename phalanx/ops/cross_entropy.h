// Softmax cross-entropy over a vocabulary.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// A target that does not count.
inline constexpr int32_t kIgnore = -1;

/// logits [T, V], targets i32 [T] → Σ −log softmax(logits)[target] over the targets that count (f64), and the
/// log-sum-exp of each row, kept for backward in two parts that lose nothing at any magnitude: m = max of the
/// row, and log Σ e^(logit − m); [T, 2] of the logits' dtype.
struct CrossEntropy {
  double loss_sum;
  Tensor log_sum_exp_T2;
};
CrossEntropy cross_entropy(const Tensor& logits_TV, const Tensor& targets);
/// The gradient of scale · loss_sum, written over the logits. Rows that do not count get zeros.
void cross_entropy_backward_into(Tensor logits_TV, const Tensor& targets, const Tensor& log_sum_exp_T2,
                                 double scale);

}  // namespace phalanx
