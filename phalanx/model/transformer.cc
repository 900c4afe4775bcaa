#include "phalanx/model/transformer.h"

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

const ModelConfig& checked(const ModelConfig& c, const Mesh& mesh, int ulysses) {
  const std::string why = misfit(c, mesh.layout(), ulysses);
  if (!why.empty()) throw Error("layout {}: {}", mesh.layout().text(), why);
  return c;
}

}  // namespace

Transformer::Transformer(ParameterStore& store, const ModelConfig& c, uint64_t seed,
                         const StreamConfig& stream, int ulysses, std::vector<StagePart> parts)
    : config_(checked(c, store.mesh(), ulysses)),
      data_(store),
      tensor_(store.mesh(), stream),
      context_(store.mesh(), ulysses_ranks(c, store.mesh().layout(), ulysses)) {
  if (parts.empty()) parts = cut_into_stages(c.layers, 1);
  const Builder build = {store, data_, tensor_, context_, config_};
  for (const StagePart& part : parts) stages_.push_back(std::make_unique<Stage>(build, part, seed));
  for (int i = 0; i < c.blocks(); ++i) {
    if (Moe* layer = moe(i)) moe_layers_.push_back(layer);
  }
}

Moe* Transformer::moe(int layer) {
  for (const auto& stage : stages_) {
    if (Moe* found = stage->moe(layer)) return found;
  }
  return nullptr;
}

double Transformer::take_mtp_loss() {
  double sum = 0;
  for (const auto& stage : stages_) {
    if (stage->mtp()) sum += stage->mtp()->take_loss();
  }
  return sum;
}

Stage& Transformer::whole() {
  PHX_CHECK(chunks() == 1 && stage(0).part().embeds && stage(0).part().predicts,
            "this rank has a part of the model");
  return stage(0);
}

Task<Tensor> Transformer::forward(Pass pass, Tape& tape) {
  const Tensor x_TD = co_await whole().forward(Tensor(), pass, tape);
  co_return co_await whole().loss(x_TD, pass, tape);
}

Task<> Transformer::backward(Pass pass, Tape& tape) {
  Tensor dx_TD = co_await whole().loss_backward(pass, tape);
  co_await whole().backward(std::move(dx_TD), pass, tape);
}

Task<Tensor> Transformer::next_token_logits(Pass pass, Tape& tape) {
  const Tensor x_TD = co_await whole().forward(Tensor(), pass, tape);
  co_return co_await whole().next_token_logits(x_TD, pass, tape);
}

}  // namespace phalanx
