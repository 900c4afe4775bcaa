#include "phalanx/model/stage.h"

#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"

namespace phalanx {
namespace {

Parameter& add_positions(const Builder& b) {
  return b.store.add({.name = "positions.w",
                      .shape = {b.config.context, b.config.width},
                      .init = {.std = b.config.init_std},
                      .gradient = b.tensor.sequence() ? OverTp::parts : OverTp::alike});
}

// The last row of each sequence; x itself where they have one each.
Tensor last_rows(const Tensor& x_TD, const Tensor& sequence_offsets) {
  const auto ends = sequence_offsets.span<const int64_t>().subspan(1);
  const int64_t sequences = std::ssize(ends);
  if (sequences == 1) return x_TD.slice(ends[0] - 1, ends[0]);
  if (sequences == x_TD.rows()) return x_TD;
  const Tensor last_BD = Tensor::empty(x_TD.shape().with_rows(sequences), x_TD.dtype(), x_TD.device());
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t end = ends[static_cast<size_t>(b)];
    copy_into(last_BD.slice(b, b + 1), x_TD.slice(end - 1, end));
  }
  return last_BD;
}

}  // namespace

std::vector<StagePart> cut_into_stages(int layers, int stages, std::span<const int> layers_of) {
  std::vector<int> sizes(layers_of.begin(), layers_of.end());
  if (sizes.empty()) {
    for (int s = 0; s < stages; ++s) sizes.push_back(layers / stages + (s < layers % stages ? 1 : 0));
  }
  const int sum = std::accumulate(sizes.begin(), sizes.end(), 0);
  if (static_cast<int>(sizes.size()) != stages || sum != layers) {
    throw Error("{} stages of {} layers in all, but there are {} stages and {} layers", sizes.size(), sum,
                stages, layers);
  }
  std::vector<StagePart> parts;
  int first = 0;
  for (int s = 0; s < stages; ++s) {
    const int end = first + sizes[static_cast<size_t>(s)];
    parts.push_back({.first_layer = first, .end_layer = end, .embeds = s == 0, .predicts = s == stages - 1});
    first = end;
  }
  return parts;
}

std::vector<StagePart> parts_of_rank(const Schedule& schedule, int rank, int layers,
                                     std::span<const int> layers_of) {
  const std::vector<StagePart> all = cut_into_stages(layers, schedule.stages(), layers_of);
  std::vector<StagePart> parts;
  for (int chunk = 0; chunk < schedule.chunks_per_rank; ++chunk) {
    parts.push_back(all[static_cast<size_t>(schedule.stage(rank, chunk))]);
  }
  return parts;
}

Stage::Stage(const Builder& b, const StagePart& part, uint64_t seed)
    : part_(part),
      data_(b.data),
      tensor_(b.tensor),
      layers_of_model_(b.config.layers),
      dropout_rate_(b.config.dropout),
      dropout_(seed, "embedding.dropout") {
  size_t before = b.store.added().size();
  if (part.embeds) {
    embedding_ = std::make_unique<TokenTable>(b, "embedding.w");
    if (b.config.positions == Positions::learned) positions_ = &add_positions(b);
    embedding_weights_.emplace(b.store, before);
  }
  for (int i = part.first_layer; i < part.end_layer; ++i) {
    before = b.store.added().size();
    blocks_.push_back(std::make_unique<Block>(b, format("layers.{}", i), i, seed));
    block_weights_.emplace_back(b.store, before);
  }
  before = b.store.added().size();
  if (part.predicts) {
    norm_ = make_norm(b, "norm");
    head_ = std::make_unique<TokenTable>(b, b.config.tied ? "embedding.w" : "head.w");
    if (b.config.mtp > 0) mtp_embedding_ = std::make_unique<TokenTable>(b, "embedding.w");
    head_weights_.emplace(b.store, before);
    const int layers = part.end_layer - part.first_layer;
    if (b.config.mtp > 0) mtp_ = std::make_unique<Mtp>(b, *mtp_embedding_, *head_, layers, seed);
  }
}

Moe* Stage::moe(int layer) {
  if (layer >= layers_of_model_) return mtp_ ? mtp_->moe(layer - layers_of_model_) : nullptr;
  return layer >= part_.first_layer && layer < part_.end_layer ? block(layer).moe() : nullptr;
}

void Stage::expect_passes(int microbatches) {
  if (embedding_weights_) data_.expect(*embedding_weights_, microbatches);
  for (DataParallel::Part& part : block_weights_) data_.expect(part, microbatches);
  if (head_weights_) data_.expect(*head_weights_, microbatches);
  if (mtp_) mtp_->expect_passes(microbatches);
}

Task<Tensor> Stage::embed(Pass pass) {
  const TracePart part("embedding", "", TracePhase::forward);
  const Batch& batch = *pass.batch;
  const DataParallel::Hold held = co_await data_.hold(&*embedding_weights_);
  Tensor x_TD = co_await embedding_->embed(batch.tokens);
  if (positions_) {
    const Lease positions = co_await positions_->use();
    x_TD = add(x_TD, embedding(positions.value(), tensor_.stream_rows(batch.positions)));
  }
  co_return dropped(x_TD, pass, tensor_.stream_rows(batch.rows), dropout_, dropout_rate_);
}

Task<> Stage::embed_backward(Tensor dx_TD, Pass pass, Tape& tape) {
  const TracePart part("embedding", "", TracePhase::backward);
  const Batch& batch = *pass.batch;
  dx_TD = dropped(dx_TD, pass, tensor_.stream_rows(batch.rows), dropout_, dropout_rate_);
  if (positions_) {
    tape.defer([this, dx_TD, positions = tensor_.stream_rows(batch.positions)] {
      embedding_backward_into(positions_->grad(), dx_TD, positions);
    });
  }
  co_await embedding_->embed_backward(dx_TD, batch.tokens, tape);
  co_await passed(&data_, &*embedding_weights_, tape);
}

Task<Tensor> Stage::forward(Tensor x_TD, Pass pass, Tape& tape) {
  if (embedding_) x_TD = co_await embed(pass);
  for (int i = part_.first_layer; i < part_.end_layer; ++i) {
    const DataParallel::Hold held = co_await data_.hold(&weights(i));
    if (i + 1 < part_.end_layer) data_.prefetch(weights(i + 1));
    x_TD = co_await block(i).forward(x_TD, pass_of(i, pass), tape.scope("layer", i));
  }
  co_return x_TD;
}

Task<Tensor> Stage::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  for (int i = part_.end_layer; i-- > part_.first_layer;) {
    const DataParallel::Hold held = co_await data_.hold(&weights(i));
    if (i > part_.first_layer) data_.prefetch(weights(i - 1));
    dy_TD = co_await block(i).backward(dy_TD, pass_of(i, pass), tape.scope("layer", i));
    co_await passed(&data_, &weights(i), tape);
  }
  if (!embedding_) co_return dy_TD;
  co_await embed_backward(std::move(dy_TD), pass, tape);
  co_return Tensor();
}

Task<Tensor> Stage::loss(Tensor x_TD, Pass pass, Tape& tape) {
  const TracePart part("head", "", TracePhase::forward);
  const DataParallel::Hold held = co_await data_.hold(&*head_weights_);
  const Tensor normed_TD = co_await norm_->forward(x_TD, tape.scope("norm"));
  const LossRows how = loss_rows(pass);
  const Tensor loss = co_await head_->loss(normed_TD, pass.batch->targets, how, tape.scope("loss"));
  if (mtp_ && pass.training) co_await mtp_->forward(std::move(x_TD), pass, tape.scope("mtp"));
  co_return loss;
}

Task<Tensor> Stage::loss_backward(Pass pass, Tape& tape) {
  const TracePart part("head", "", TracePhase::backward);
  const DataParallel::Hold held = co_await data_.hold(&*head_weights_);
  Tensor dahead_TD;
  if (mtp_) dahead_TD = co_await mtp_->backward(pass, tape.scope("mtp"));
  const Tensor dnormed_TD =
      co_await head_->loss_backward(pass.batch->targets, pass.scale, tape.scope("loss"));
  Tensor dx_TD = co_await norm_->backward(dnormed_TD, tape.scope("norm"), std::move(dahead_TD));
  co_await passed(&data_, &*head_weights_, tape);
  co_return dx_TD;
}

Task<Tensor> Stage::next_token_logits(Tensor x_TD, Pass pass, Tape& tape) {
  const DataParallel::Hold held = co_await data_.hold(&*head_weights_);
  const Tensor last_BD = last_rows(x_TD, pass.batch->sequence_offsets);
  const Tensor normed_BD = co_await norm_->forward(last_BD, tape.scope("norm"));
  co_return co_await head_->logits(normed_BD);
}

}  // namespace phalanx
