#include "phalanx/model/token_table.h"

#include <algorithm>
#include <array>

#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"
#include "phalanx/parallel/stream_products.h"

namespace phalanx {
namespace {

// What cross-entropy leaves for backward: either the input's gradient,
struct SavedLoss {
  Tensor dx_TD;
  Tensor logits_TV;  // or this rank's part of these
  Tensor log_sum_exp_T2;
};

}  // namespace

LossRows loss_rows(const Pass& pass, double weight) {
  return pass.training ? LossRows{pass.loss_rows, weight * pass.scale} : LossRows();
}

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

Task<Tensor> TokenTable::loss(Tensor x_TD, Tensor targets, LossRows how, Tape& tape) {
  if (how.rows > 0 && part_.is_whole()) co_return co_await loss_by_rows(x_TD, targets, how, tape);
  const Tensor logits_TV = co_await gathered_logits(tape.save(x_TD));
  const CrossEntropy loss = co_await cross_entropy_of(logits_TV, targets);
  SavedLoss saved = {{}, logits_TV, loss.log_sum_exp_T2};
  tape.save(std::move(saved));
  co_return loss.loss_sum;
}

Task<Tensor> TokenTable::loss_by_rows(Tensor x_TD, Tensor targets, LossRows how, Tape& tape) {
  const Lease w = co_await w_.use();
  const int64_t all = x_TD.rows();
  const Tensor logits_TV =
      Tensor::empty({std::min(all, how.rows), w.value().rows()}, x_TD.dtype(), x_TD.device());
  const Tensor dx_TD = Tensor::empty(x_TD.shape(), x_TD.dtype(), x_TD.device());
  Tensor loss = Tensor::zeros({1}, DType::f64, x_TD.device());
  for (int64_t begin = 0; begin < all; begin += how.rows) {
    const int64_t end = std::min(all, begin + how.rows);
    const Tensor x = x_TD.slice(begin, end);
    const Tensor part = logits_TV.slice(0, end - begin);
    matmul_nt_into(part, x, w.value(), Into::replace);
    add_into(loss, cross_entropy_gradient_into(part, targets.slice(begin, end), how.scale));
    matmul_into(dx_TD.slice(begin, end), part, w.value(), Into::replace);
    const auto [dw, into] = w_.grad_sum();
    matmul_tn_into(dw, part, x, into);
  }
  SavedLoss saved = {dx_TD, {}, {}};
  tape.save(std::move(saved));
  co_return loss;
}

Task<Tensor> TokenTable::loss_backward(Tensor targets, double scale, Tape& tape) {
  const auto saved = tape.take<SavedLoss>();
  if (saved.dx_TD.defined()) co_return saved.dx_TD;
  const Tensor dlogits_TV = saved.logits_TV;
  cross_entropy_backward_into(dlogits_TV, targets, saved.log_sum_exp_T2, scale, part_);
  GatherChunks rows = tensor_.gather_chunks(tape.take());
  const Lease w = co_await w_.use();
  if (!tensor_.overlaps()) {
    Tensor all_TD = co_await rows.rest();
    defer_gradient(dlogits_TV, std::move(all_TD), tape);
  }
  ReduceChunks dx_TD = tensor_.reduce_chunks({rows.rows(), w.value().dim(1)}, dlogits_TV);
  multiply_and_send(dx_TD, [&](const Tensor& part_TD, RowRun run) {
    matmul_into(part_TD, dlogits_TV.slice(run.begin, run.end), w.value(), Into::replace);
  });
  if (tensor_.overlaps()) {
    Tensor all_TD = co_await rows.rest();
    defer_gradient(dlogits_TV, std::move(all_TD), tape);
  }
  co_return co_await dx_TD.sum();
}

Task<Tensor> TokenTable::gathered_logits(Tensor x_TD) {
  GatherChunks rows = tensor_.gather_chunks(std::move(x_TD));
  const Lease w = co_await w_.use();
  const Tensor weight = w.value();
  const Tensor logits_TV = Tensor::empty({rows.rows(), weight.rows()}, weight.dtype(), weight.device());
  const auto multiply = [&](RowRun run, const Tensor& chunk) {
    matmul_nt_into(logits_TV.slice(run.begin, run.end), chunk, weight, Into::replace);
  };
  co_await each_chunk(&rows, multiply);
  co_return logits_TV;
}

void TokenTable::defer_gradient(const Tensor& dlogits_TV, Tensor x_TD, Tape& tape) {
  tape.defer([this, dlogits_TV, x_TD = std::move(x_TD)] {
    const auto [dw, into] = w_.grad_sum();
    matmul_tn_into(dw, dlogits_TV, x_TD, into);
  });
}

Task<Tensor> TokenTable::logits(Tensor x_TD) {
  PHX_CHECK(part_.is_whole(), "logits of a vocabulary that is cut over tp");
  const Lease w = co_await w_.use();
  const DType dtype = x_TD.dtype() == DType::bf16 ? DType::f32 : x_TD.dtype();
  const Tensor logits_TV = Tensor::empty({x_TD.rows(), w.value().rows()}, dtype, x_TD.device());
  matmul_nt_into(logits_TV, x_TD, w.value(), Into::replace);
  co_return logits_TV;
}

}  // namespace phalanx
