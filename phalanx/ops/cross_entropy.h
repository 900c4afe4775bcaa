// Softmax cross-entropy over a vocabulary.
#pragma once

#include "phalanx/ops/vocabulary_part.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// A target that does not count.
inline constexpr int32_t kIgnore = -1;

/// logits [T, V], targets i32 [T] → Σ −log softmax(logits)[target] over the targets that count (f64 [1]), and
/// the log-sum-exp of each row, kept for backward in two parts that lose nothing at any magnitude: m = max of
/// the row, and log Σ e^(logit − m); [T, 2] of the logits' dtype (of bf16: f32).
struct CrossEntropy {
  Tensor loss_sum;
  Tensor log_sum_exp_T2;
};
CrossEntropy cross_entropy(const Tensor& logits_TV, const Tensor& targets);

/// The same where ranks hold parts of the columns (vocabulary-parallel, Megatron-LM, section 3): no rank ever
/// has all logits. Of one part, for each row: its maximum m, Σ e^(logit − m), and the target's logit, 0 if it
/// is in another part; f64 [T, 3].
Tensor cross_entropy_part(const Tensor& logits_TV, const Tensor& targets, VocabularyPart part);
/// From those of all parts, [R, T, 3], for logits of that dtype.
CrossEntropy merge_cross_entropy(const Tensor& parts_RT3, const Tensor& targets, DType dtype);

/// The gradient of scale · loss_sum, written over the logits (of one part, or all). Rows that do not count
/// get zeros.
void cross_entropy_backward_into(Tensor logits_TV, const Tensor& targets, const Tensor& log_sum_exp_T2,
                                 double scale, VocabularyPart part = {});

/// Both at once, of all columns: Σ loss (f64 [1]), and the gradient of scale · loss_sum over the logits. A
/// GPU reads each row from memory once.
Tensor cross_entropy_gradient_into(Tensor logits_TV, const Tensor& targets, double scale);

}  // namespace phalanx
