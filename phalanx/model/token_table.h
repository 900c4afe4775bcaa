// The vocabulary's two ends: tokens to rows of the stream, and rows to the loss.
#pragma once

#include <string>

#include "phalanx/model/layer.h"
#include "phalanx/ops/cross_entropy.h"

namespace phalanx {

/// How a loss is computed: of so many rows at once, with the gradient of scale · loss; 0: of all, its
/// gradient only when it is asked for.
struct LossRows {
  int64_t rows = 0;
  double scale = 0;
};
/// As the pass has it; `weight`: of this loss in the step's. Without training there is no gradient.
LossRows loss_rows(const Pass& pass, double weight = 1);

/// A table NAME [V, D], cut over tp by tokens (⌈V / tp⌉ each; the last ranks have fewer, none perhaps). It
/// embeds, it is the output head, or both (tied).
class TokenTable {
 public:
  TokenTable(const Builder& build, const std::string& name);

  /// tokens i32 [T] → the stream.
  Task<Tensor> embed(Tensor tokens);
  Task<> embed_backward(Tensor dx_TD, Tensor tokens, Tape& tape);

  /// Σ loss (f64 [1]) of the targets (i32 [T]) that count, the same on all ranks of tp; no rank has all
  /// logits of a row. `how`: with rows at once and a gradient that is wanted, that comes with the loss, where
  /// tp is 1.
  Task<Tensor> loss(Tensor x_TD, Tensor targets, LossRows how, Tape& tape);
  /// The gradient of the stream, of scale · loss (as `how` had it).
  Task<Tensor> loss_backward(Tensor targets, double scale, Tape& tape);

  /// [T, V], for decoding on one rank of tp.
  Task<Tensor> logits(Tensor x_TD);

 private:
  Task<Tensor> loss_by_rows(Tensor x_TD, Tensor targets, LossRows how, Tape& tape);
  // This rank's part of all rows' logits, from the stream.
  Task<Tensor> gathered_logits(Tensor x_TD);
  Task<CrossEntropy> cross_entropy_of(Tensor logits_TV, Tensor targets);
  // Of the table, given all rows.
  void defer_gradient(const Tensor& dlogits_TV, Tensor x_TD, Tape& tape);

  TensorParallel& tensor_;
  Parameter& w_;
  VocabularyPart part_;
};

}  // namespace phalanx
