#include "phalanx/model/token_table.h"

#include "phalanx/ops/embedding.h"
#include "phalanx/ops/matmul.h"

namespace phalanx {
namespace {

// What cross-entropy leaves for backward.
struct SavedLoss {
  Tensor logits_TV;  // of this rank's part
  Tensor log_sum_exp_T2;
};

}  // namespace

TokenTable::TokenTable(const Builder& b, const std::string& name)
    : tensor_(b.tensor),
      w_(b.store.add({.name = name,
                      .shape = {b.config.vocabulary, b.config.width},
                      .placement = {{.axis = Axis::tp, .dim = 0, .uneven = true}},
                      .init = {.std = b.config.init_std}})) {
  if (tensor_.ranks() > 1) part_ = {.first = w_.slice().begin[0], .all = b.config.vocabulary};
}

Task<Tensor> TokenTable::embed(Tensor tokens) {
  const Lease w = co_await w_.use();
  const Tensor x_TD = embedding(w.value(), tokens, part_);
  co_return co_await tensor_.reduce(x_TD);
}

Task<> TokenTable::embed_backward(Tensor dx_TD, Tensor tokens, Tape& tape) {
  const Tensor all_TD = co_await tensor_.gather(dx_TD);
  tape.defer([this, all_TD, tokens] { embedding_backward_into(w_.grad(), all_TD, tokens, part_); });
}

Task<CrossEntropy> TokenTable::cross_entropy_of(Tensor logits_TV, Tensor targets) {
  if (part_.is_whole()) co_return cross_entropy(logits_TV, targets);
  Work work = tensor_.group().all_gather(cross_entropy_part(logits_TV, targets, part_));
  const Tensor parts = co_await work;
  co_return merge_cross_entropy(parts.view({tensor_.ranks(), targets.numel(), 3}), targets,
                                logits_TV.dtype());
}

Task<double> TokenTable::loss(Tensor x_TD, Tensor targets, Tape& tape) {
  const Tensor all_TD = co_await tensor_.gather(tape.save(x_TD));
  const Lease w = co_await w_.use();
  const Tensor logits_TV = matmul_nt(all_TD, w.value());
  const CrossEntropy loss = co_await cross_entropy_of(logits_TV, targets);
  SavedLoss saved = {logits_TV, loss.log_sum_exp_T2};
  tape.save(std::move(saved));
  co_return loss.loss_sum;
}

Task<Tensor> TokenTable::loss_backward(Tensor targets, double scale, Tape& tape) {
  const auto saved = tape.take<SavedLoss>();
  const Tensor dlogits_TV = saved.logits_TV;
  cross_entropy_backward_into(dlogits_TV, targets, saved.log_sum_exp_T2, scale, part_);
  Tensor all_TD = co_await tensor_.gather(tape.take());
  tape.defer([this, dlogits_TV, x = std::move(all_TD)] {
    const auto [dw, into] = w_.grad_sum();
    matmul_tn_into(dw, dlogits_TV, x, into);
  });
  const Lease w = co_await w_.use();
  const Tensor dx_TD = matmul(dlogits_TV, w.value());
  co_return co_await tensor_.reduce(dx_TD);
}

Task<Tensor> TokenTable::logits(Tensor x_TD) {
  PHX_CHECK(part_.is_whole(), "logits of a vocabulary that is cut over tp");
  const Lease w = co_await w_.use();
  co_return matmul_nt(x_TD, w.value());
}

}  // namespace phalanx
