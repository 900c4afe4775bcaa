// A run of the model's layers that one rank computes: a stage of a pipeline, or the whole model.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "phalanx/model/block.h"
#include "phalanx/model/mtp.h"
#include "phalanx/model/norm.h"
#include "phalanx/model/token_table.h"
#include "phalanx/parallel/schedule/schedule.h"

namespace phalanx {

/// Which part of the model a stage is.
struct StagePart {
  int first_layer = 0;
  int end_layer = 0;
  bool embeds = false;    ///< the first stage: tokens to the stream
  bool predicts = false;  ///< the last: final norm, output head, loss, multi-token prediction
};

/// The stages of a model, in order: `layers_of` of each, or as many as go round, the first ones one more.
/// Error: the numbers do not sum to `layers`, or there are not as many as stages.
std::vector<StagePart> cut_into_stages(int layers, int stages, std::span<const int> layers_of = {});
/// Those that a rank of the pipeline has, by chunk.
std::vector<StagePart> parts_of_rank(const Schedule& schedule, int rank, int layers,
                                     std::span<const int> layers_of = {});

/// The parameters of layers have the names of the whole model. A tied output head is the embedding, and
/// multi-token prediction needs one: on a stage of its own it is a second copy, whose gradients are summed
/// with the first's.
class Stage {
 public:
  Stage(const Builder& build, const StagePart& part, uint64_t seed);

  /// From the stream that the stage before gave (of the first: nothing) to that behind this one's layers. The
  /// tape keeps what backward needs.
  Task<Tensor> forward(Tensor x_TD, Pass pass, Tape& tape);
  /// The gradient of the stage's input (of the first: nothing); adds to the parameters' gradients, or defers
  /// that work on the tape.
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape);

  /// Of the last stage: Σ loss (f64 [1]) over the batch's targets that count. In training those of
  /// multi-token prediction come beside it (Mtp::take_loss).
  Task<Tensor> loss(Tensor x_TD, Pass pass, Tape& tape);
  /// Of the last stage: the gradient of pass.scale · Σ loss, with those, by what forward gave.
  Task<Tensor> loss_backward(Pass pass, Tape& tape);
  /// A step begins, in which so many microbatches go backward through the stage.
  void expect_passes(int microbatches);

  /// Of the last stage: the logits of the last token of each of the batch's sequences, [B, V].
  Task<Tensor> next_token_logits(Tensor x_TD, Pass pass, Tape& tape);

  const StagePart& part() const { return part_; }
  /// The MoE layer of that number (ModelConfig::mtp); null: it is dense, or of another stage.
  Moe* moe(int layer);
  /// Null: it is another stage's, or there is none.
  Mtp* mtp() { return mtp_.get(); }

 private:
  Block& block(int layer) { return *blocks_[static_cast<size_t>(layer - part_.first_layer)]; }
  DataParallel::Part& weights(int layer) {
    return block_weights_[static_cast<size_t>(layer - part_.first_layer)];
  }
  Pass pass_of(int layer, Pass pass) const { return pass_of_layer(pass, layer - part_.first_layer); }
  Task<Tensor> embed(Pass pass);
  Task<> embed_backward(Tensor dx_TD, Pass pass, Tape& tape);

  StagePart part_;
  DataParallel& data_;
  TensorParallel& tensor_;
  int layers_of_model_;
  double dropout_rate_;
  RandomStream dropout_;
  std::unique_ptr<TokenTable> embedding_;  // of the first stage
  Parameter* positions_ = nullptr;         // there, unless rope
  std::vector<std::unique_ptr<Block>> blocks_;
  std::deque<DataParallel::Part> block_weights_;
  std::optional<DataParallel::Part> embedding_weights_;
  std::optional<DataParallel::Part> head_weights_;  // with those of the next two
  std::unique_ptr<Norm> norm_;                      // of the last stage
  std::unique_ptr<TokenTable> mtp_embedding_;       // there, and only with mtp_
  std::unique_ptr<TokenTable> head_;                // there
  std::unique_ptr<Mtp> mtp_;                        // there, or null
};

}  // namespace phalanx
