#include "phalanx/model/transformer.h"

#include "phalanx/base/error.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"

namespace phalanx {
namespace {

// `rows`: of the step's whole batch, those of x.
Tensor dropped(const Tensor& x_TD, const Pass& pass, const Tensor& rows, const RandomStream& stream,
               double rate) {
  if (rate == 0 || !pass.training) return x_TD;
  return dropout(x_TD, rows, {.stream = stream, .step = pass.step, .rate = rate});
}

Parameter& add_positions(const Builder& b) {
  return b.store.add({.name = "positions.w",
                      .shape = {b.config.context, b.config.width},
                      .init = {.std = b.config.init_std},
                      .gradient = b.tensor.sequence() ? OverTp::parts : OverTp::alike});
}

const ModelConfig& checked(const ModelConfig& c, const Mesh& mesh) {
  const std::string why = misfit(c, mesh.layout());
  if (!why.empty()) throw Error("layout {}: {}", mesh.layout().text(), why);
  return c;
}

}  // namespace

Block::Block(const Builder& b, int layer, uint64_t seed) : tensor_(b.tensor), dropout_(b.config.dropout) {
  const ModelConfig& c = b.config;
  const std::string name = format("layers.{}", layer);
  const auto add_branch = [&](std::unique_ptr<Layer> norm, std::unique_ptr<Layer> body, const char* site) {
    branches_.push_back({std::move(norm), std::move(body), RandomStream(seed, name + site)});
  };
  auto attention_norm = make_norm(b, name + ".attention_norm");
  add_branch(std::move(attention_norm), std::make_unique<Attention>(b, name + ".attention", layer),
             ".attention.dropout");
  auto mlp_norm = make_norm(b, name + ".mlp_norm");
  std::unique_ptr<Layer> mlp;
  if (c.mlp == MlpKind::moe && layer >= c.moe.dense_layers) {
    const std::string experts = format("layers.{}.moe.experts", c.moe.layer_of_experts(layer));
    auto moe = std::make_unique<Moe>(b, name + ".moe", experts);
    moe_ = moe.get();
    mlp = std::move(moe);
  } else if (c.mlp == MlpKind::gelu || c.mlp == MlpKind::gelu_tanh) {
    mlp = std::make_unique<GeluMlp>(b, name + ".mlp");
  } else {
    mlp = std::make_unique<SwigluMlp>(b, name + ".mlp", c.mlp_width);
  }
  add_branch(std::move(mlp_norm), std::move(mlp), ".mlp.dropout");
}

Task<Tensor> Block::forward(Branch* branch, Tensor x_TD, Pass pass, Tape& tape) {
  const Tensor normed_TD = co_await branch->norm->forward(x_TD, pass, tape.scope("norm"));
  const Tensor y_TD = co_await branch->layer->forward(normed_TD, pass, tape.scope("layer"));
  const Tensor rows = tensor_.stream_rows(pass.batch->rows);
  co_return add(x_TD, dropped(y_TD, pass, rows, branch->dropout, dropout_));
}

Task<Tensor> Block::backward(Branch* branch, Tensor dy_TD, Pass pass, Tape& tape) {
  const Tensor rows = tensor_.stream_rows(pass.batch->rows);
  const Tensor dbranch_TD = dropped(dy_TD, pass, rows, branch->dropout, dropout_);
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

Transformer::Transformer(ParameterStore& store, const ModelConfig& c, uint64_t seed, bool sequence)
    : config_(checked(c, store.mesh())),
      tensor_(store.mesh(), sequence),
      context_(store.mesh()),
      embedding_({store, tensor_, context_, config_}, "embedding.w"),
      positions_(c.positions == Positions::learned ? &add_positions({store, tensor_, context_, config_})
                                                   : nullptr),
      dropout_(seed, "embedding.dropout") {
  const Builder build = {store, tensor_, context_, config_};
  for (int i = 0; i < c.layers; ++i) {
    blocks_.push_back(std::make_unique<Block>(build, i, seed));
    if (Moe* moe = blocks_.back()->moe()) moe_layers_.push_back(moe);
  }
  norm_ = make_norm(build, "norm");
  if (!c.tied) head_ = std::make_unique<TokenTable>(build, "head.w");
}

Task<Tensor> Transformer::hidden(Pass pass, Tape& tape) {
  const Batch& batch = *pass.batch;
  Tensor x_TD = co_await embedding_.embed(batch.tokens);
  if (positions_) {
    const Lease positions = co_await positions_->use();
    x_TD = add(x_TD, embedding(positions.value(), tensor_.stream_rows(batch.positions)));
  }
  x_TD = dropped(x_TD, pass, tensor_.stream_rows(batch.rows), dropout_, config_.dropout);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    x_TD = co_await blocks_[i]->forward(x_TD, pass, tape.scope("layer", static_cast<int>(i)));
  }
  co_return co_await norm_->forward(x_TD, pass, tape.scope("norm"));
}

Task<double> Transformer::forward(Pass pass, Tape& tape) {
  const Tensor x_TD = co_await hidden(pass, tape);
  co_return co_await head().loss(x_TD, pass, tape.scope("loss"));
}

Task<> Transformer::backward(Pass pass, Tape& tape) {
  const Batch& batch = *pass.batch;
  Tensor dx_TD = co_await head().loss_backward(pass, tape.scope("loss"));
  dx_TD = co_await norm_->backward(dx_TD, pass, tape.scope("norm"));
  for (size_t i = blocks_.size(); i-- > 0;) {
    dx_TD = co_await blocks_[i]->backward(dx_TD, pass, tape.scope("layer", static_cast<int>(i)));
  }
  dx_TD = dropped(dx_TD, pass, tensor_.stream_rows(batch.rows), dropout_, config_.dropout);
  if (positions_) {
    tape.defer([this, dx_TD, positions = tensor_.stream_rows(batch.positions)] {
      embedding_backward_into(positions_->grad(), dx_TD, positions);
    });
  }
  co_await embedding_.embed_backward(dx_TD, batch.tokens, tape);
}

Task<Tensor> Transformer::next_token_logits(Pass pass, Tape& tape) {
  const Tensor x_TD = co_await hidden(pass, tape);
  const Tensor last_1D = x_TD.slice(x_TD.rows() - 1, x_TD.rows());
  co_return co_await head().logits(last_1D);
}

}  // namespace phalanx
