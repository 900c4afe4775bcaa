#include "phalanx/model/transformer.h"

#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"
#include "phalanx/ops/matmul.h"

namespace phalanx {
namespace {

// What cross-entropy leaves for backward.
struct SavedLoss {
  Tensor logits_TV;
  Tensor log_sum_exp_T2;
};

Tensor dropped(const Tensor& x_TD, const Pass& pass, const RandomStream& stream, double rate) {
  if (rate == 0 || !pass.training) return x_TD;
  return dropout(x_TD, pass.batch->rows, {.stream = stream, .step = pass.step, .rate = rate});
}

Parameter& add_table(ParameterStore& store, const std::string& name, int64_t rows, const ModelConfig& c) {
  return store.add({.name = name, .shape = {rows, c.width}, .init = {.std = c.init_std}});
}

}  // namespace

Block::Block(ParameterStore& store, int layer, const ModelConfig& c, uint64_t seed) : dropout_(c.dropout) {
  const std::string name = format("layers.{}", layer);
  const auto add_branch = [&](std::unique_ptr<Layer> norm, std::unique_ptr<Layer> body, const char* site) {
    branches_.push_back({std::move(norm), std::move(body), RandomStream(seed, name + site)});
  };
  auto attention_norm = make_norm(store, name + ".attention_norm", c);
  add_branch(std::move(attention_norm), std::make_unique<Attention>(store, name + ".attention", layer, c),
             ".attention.dropout");
  auto mlp_norm = make_norm(store, name + ".mlp_norm", c);
  std::unique_ptr<Layer> mlp;
  if (c.mlp == MlpKind::moe && layer >= c.moe.dense_layers) {
    auto moe = std::make_unique<Moe>(store, name + ".moe", c);
    moe_ = moe.get();
    mlp = std::move(moe);
  } else if (c.mlp == MlpKind::gelu || c.mlp == MlpKind::gelu_tanh) {
    mlp = std::make_unique<GeluMlp>(store, name + ".mlp", c);
  } else {
    mlp = std::make_unique<SwigluMlp>(store, name + ".mlp", c.mlp_width, c);
  }
  add_branch(std::move(mlp_norm), std::move(mlp), ".mlp.dropout");
}

Task<Tensor> Block::forward(Branch* branch, Tensor x_TD, Pass pass, Tape& tape) {
  const Tensor normed_TD = co_await branch->norm->forward(x_TD, pass, tape.scope("norm"));
  const Tensor y_TD = co_await branch->layer->forward(normed_TD, pass, tape.scope("layer"));
  co_return add(x_TD, dropped(y_TD, pass, branch->dropout, dropout_));
}

Task<Tensor> Block::backward(Branch* branch, Tensor dy_TD, Pass pass, Tape& tape) {
  const Tensor dbranch_TD = dropped(dy_TD, pass, branch->dropout, dropout_);
  const Tensor dnormed_TD = co_await branch->layer->backward(dbranch_TD, pass, tape.scope("layer"));
  const Tensor dx_TD = co_await branch->norm->backward(dnormed_TD, pass, tape.scope("norm"));
  co_return add(dy_TD, dx_TD);
}

Task<Tensor> Block::forward(Tensor x_TD, Pass pass, Tape& tape) {
  const Tensor h_TD = co_await forward(&branches_[0], x_TD, pass, tape.scope("attention"));
  co_return co_await forward(&branches_[1], h_TD, pass, tape.scope("mlp"));
}

Task<Tensor> Block::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  const Tensor dh_TD = co_await backward(&branches_[1], dy_TD, pass, tape.scope("mlp"));
  co_return co_await backward(&branches_[0], dh_TD, pass, tape.scope("attention"));
}

Transformer::Transformer(ParameterStore& store, const ModelConfig& c, uint64_t seed)
    : config_(c),
      embedding_(add_table(store, "embedding.w", c.vocabulary, c)),
      positions_(c.positions == Positions::learned ? &add_table(store, "positions.w", c.context, c)
                                                   : nullptr),
      dropout_(seed, "embedding.dropout") {
  for (int i = 0; i < c.layers; ++i) {
    blocks_.push_back(std::make_unique<Block>(store, i, c, seed));
    if (Moe* moe = blocks_.back()->moe()) moe_layers_.push_back(moe);
  }
  norm_ = make_norm(store, "norm", c);
  head_ = c.tied ? nullptr : &add_table(store, "head.w", c.vocabulary, c);
}

Task<Tensor> Transformer::hidden(Pass pass, Tape& tape) {
  const Lease table = co_await embedding_.use();
  Tensor x_TD = embedding(table.value(), pass.batch->tokens);
  if (positions_) {
    const Lease positions = co_await positions_->use();
    x_TD = add(x_TD, embedding(positions.value(), pass.batch->positions));
  }
  x_TD = dropped(x_TD, pass, dropout_, config_.dropout);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    x_TD = co_await blocks_[i]->forward(x_TD, pass, tape.scope("layer", static_cast<int>(i)));
  }
  co_return co_await norm_->forward(x_TD, pass, tape.scope("norm"));
}

Task<double> Transformer::forward(Pass pass, Tape& tape) {
  const Tensor x_TD = co_await hidden(pass, tape);
  const Lease w = co_await head().use();
  const Tensor logits_TV = matmul_nt(tape.save(x_TD), w.value());
  const CrossEntropy loss = cross_entropy(logits_TV, pass.batch->targets);
  SavedLoss saved = {logits_TV, loss.log_sum_exp_T2};
  tape.save(std::move(saved));
  co_return loss.loss_sum;
}

Task<> Transformer::backward(Pass pass, Tape& tape) {
  const Batch& batch = *pass.batch;
  const auto saved = tape.take<SavedLoss>();
  const Tensor dlogits_TV = saved.logits_TV;
  cross_entropy_backward_into(dlogits_TV, batch.targets, saved.log_sum_exp_T2, pass.scale);
  tape.defer([this, dlogits_TV, x = tape.take()] {
    const auto [dw, into] = head().grad_sum();
    matmul_tn_into(dw, dlogits_TV, x, into);
  });
  const Lease w = co_await head().use();
  Tensor dx_TD = matmul(dlogits_TV, w.value());
  dx_TD = co_await norm_->backward(dx_TD, pass, tape.scope("norm"));
  for (size_t i = blocks_.size(); i-- > 0;) {
    dx_TD = co_await blocks_[i]->backward(dx_TD, pass, tape.scope("layer", static_cast<int>(i)));
  }
  dx_TD = dropped(dx_TD, pass, dropout_, config_.dropout);
  tape.defer([this, dx_TD, tokens = batch.tokens, positions = batch.positions] {
    embedding_backward_into(embedding_.grad(), dx_TD, tokens);
    if (positions_) embedding_backward_into(positions_->grad(), dx_TD, positions);
  });
}

Task<Tensor> Transformer::next_token_logits(Pass pass, Tape& tape) {
  const Tensor x_TD = co_await hidden(pass, tape);
  const Lease w = co_await head().use();
  co_return matmul_nt(x_TD.slice(x_TD.rows() - 1, x_TD.rows()), w.value());
}

}  // namespace phalanx
