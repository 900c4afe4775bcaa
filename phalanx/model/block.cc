#include "phalanx/model/block.h"

#include "phalanx/model/attention.h"
#include "phalanx/model/mla.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/elementwise.h"

namespace phalanx {
namespace {

std::unique_ptr<Layer> make_attention(const Builder& b, const std::string& name, int layer) {
  if (b.config.attention == AttentionKind::mla) return std::make_unique<Mla>(b, name, layer);
  return std::make_unique<Attention>(b, name, layer);
}

}  // namespace

Tensor dropped(const Tensor& x_TD, const Pass& pass, const Tensor& rows, const RandomStream& stream,
               double rate) {
  if (rate == 0 || !pass.training) return x_TD;
  return dropout(x_TD, rows, {.stream = stream, .step = pass.step, .rate = rate});
}

Block::Block(const Builder& b, const std::string& name, int layer, uint64_t seed)
    : name_(name), tensor_(b.tensor), dropout_(b.config.dropout) {
  forgetful_.set_keeping(false);
  const ModelConfig& c = b.config;
  const auto add_branch = [&](std::unique_ptr<Norm> norm, std::unique_ptr<Layer> body, const char* kind) {
    const std::string site = name_ + (branches_.empty() ? ".attention.dropout" : ".mlp.dropout");
    branches_.push_back({kind, std::move(norm), std::move(body), RandomStream(seed, site)});
  };
  auto attention_norm = make_norm(b, name_ + ".attention_norm");
  add_branch(std::move(attention_norm), make_attention(b, name_ + ".attention", layer), "attention");
  auto mlp_norm = make_norm(b, name_ + ".mlp_norm");
  std::unique_ptr<Layer> mlp;
  if (c.has_experts(layer)) {
    const int first = c.layer_of_experts(layer);
    const std::string owner = first == layer ? name : format("layers.{}", first);
    auto moe = std::make_unique<Moe>(b, name + ".moe", owner + ".moe.experts", layer);
    moe_ = moe.get();
    mlp = std::move(moe);
  } else if (c.mlp == MlpKind::gelu || c.mlp == MlpKind::gelu_tanh) {
    mlp = std::make_unique<GeluMlp>(b, name_ + ".mlp");
  } else {
    mlp = std::make_unique<SwigluMlp>(b, name_ + ".mlp", c.mlp_width);
  }
  add_branch(std::move(mlp_norm), std::move(mlp), moe_ ? "moe" : "mlp");
}

Task<Tensor> Block::forward(Branch* branch, Tensor x_TD, Pass pass, Tape& tape) {
  const TracePart part(name_, branch->name, pass.again ? TracePhase::again : TracePhase::forward);
  std::optional<LeftNorm> left;
  if (pass.cache && branch->layer->norms()) {
    LeftNorm norm = co_await branch->norm->leave();
    left.emplace(std::move(norm));
  }
  Tensor normed_TD = x_TD;
  if (left && left->norm.w_K.defined()) {
    pass.norm = &left->norm;
  } else {
    normed_TD = co_await branch->norm->forward(x_TD, tape.scope("norm"));
  }
  const bool drops = dropout_ != 0 && pass.training;
  const Tensor residual_TD = drops ? Tensor() : x_TD;
  const Tensor y_TD = co_await branch->layer->forward(normed_TD, residual_TD, pass, tape.scope("layer"));
  if (!drops) co_return y_TD;
  const Tensor rows = tensor_.stream_rows(pass.batch->rows);
  co_return add(x_TD, dropped(y_TD, pass, rows, branch->dropout, dropout_));
}

Task<Tensor> Block::backward(Branch* branch, Tensor dy_TD, Pass pass, Tape& tape) {
  const TracePart part(name_, branch->name, TracePhase::backward);
  const Tensor rows = tensor_.stream_rows(pass.batch->rows);
  const Tensor dbranch_TD = dropped(dy_TD, pass, rows, branch->dropout, dropout_);
  const Tensor dnormed_TD = co_await branch->layer->backward(dbranch_TD, pass, tape.scope("layer"));
  co_return co_await branch->norm->backward(dnormed_TD, tape.scope("norm"), dy_TD);
}

Task<Tensor> Block::run(Tensor x_TD, Pass pass, Tape& tape) {
  Tape* attention = &tape.scope("attention");
  Tape* mlp = &tape.scope("mlp");
  if (pass.recompute.what == Recompute::attention) {
    tape.save(x_TD);
    attention = &forgetful_;
  }
  const Tensor h_TD = co_await forward(&branches_[0], x_TD, pass, *attention);
  if (pass.recompute.what == Recompute::mlp) {
    tape.save(h_TD);
    mlp = &forgetful_;
  }
  co_return co_await forward(&branches_[1], h_TD, pass, *mlp);
}

Task<Tensor> Block::forward(Tensor x_TD, Pass pass, Tape& tape) {
  if (pass.recompute.what != Recompute::full) co_return co_await run(x_TD, pass, tape);
  tape.save(x_TD);
  co_return co_await run(x_TD, pass, forgetful_);
}

Task<Tensor> Block::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  Pass again = pass;
  again.again = true;
  if (pass.recompute.what == Recompute::full) co_await run(tape.take(), again, tape);
  if (pass.recompute.what == Recompute::mlp)
    co_await forward(&branches_[1], tape.take(), again, tape.scope("mlp"));
  const Tensor dh_TD = co_await backward(&branches_[1], dy_TD, pass, tape.scope("mlp"));
  if (pass.recompute.what == Recompute::attention) {
    co_await forward(&branches_[0], tape.take(), again, tape.scope("attention"));
  }
  co_return co_await backward(&branches_[0], dh_TD, pass, tape.scope("attention"));
}

}  // namespace phalanx
