// The model: embedding, blocks, norm, output head, loss, in one stage or several.
#pragma once

#include <memory>
#include <vector>

#include "phalanx/model/stage.h"

namespace phalanx {

/// The stages of a model that one rank has. Parameters: embedding.w [V, D], positions.w [context, D] when
/// learned, layers.N.…, norm.…, head.w [V, D] unless tied, mtp.K.….
class Transformer {
 public:
  /// `config` is resolved. `seed` names the dropout. `ulysses`: see ulysses_ranks. `parts`: the rank's
  /// stages, by chunk; none: the whole model as one. Error: the mesh's axes do not divide the model.
  Transformer(ParameterStore& store, const ModelConfig& config, uint64_t seed,
              const StreamConfig& stream = {}, int ulysses = 0, std::vector<StagePart> parts = {});

  int chunks() const { return static_cast<int>(stages_.size()); }
  Stage& stage(int chunk) { return *stages_[static_cast<size_t>(chunk)]; }

  // Of the whole model in one stage:
  /// Σ loss (f64 [1]) over the batch's targets that count. The tape keeps what backward needs.
  Task<Tensor> forward(Pass pass, Tape& tape);
  /// Adds the gradient of pass.scale · (Σ loss + balance losses) to the parameters'.
  Task<> backward(Pass pass, Tape& tape);
  /// The logits of the last token of each sequence, [B, V], f32 where the model is bf16; the tape keeps
  /// nothing if it discards.
  Task<Tensor> next_token_logits(Pass pass, Tape& tape);

  const ModelConfig& config() const { return config_; }
  /// Where it computes.
  Device device() const { return data_.store().device(); }
  /// What sums the gradients and gathers the weights.
  DataParallel& data() { return data_; }
  /// Which rows of a microbatch this rank has.
  const ContextShare& context_share() const { return context_.share(); }
  /// The MoE layers that this rank has.
  const std::vector<Moe*>& moe_layers() const { return moe_layers_; }
  /// The MoE layer of that number (ModelConfig::mtp); null: it is dense, or this rank does not have it.
  Moe* moe(int layer);
  /// Mtp::take_loss, of all chunks.
  double take_mtp_loss();
  /// The shape of the stream between stages for a microbatch of this rank (parallel/tensor_parallel.h).
  Shape stream_shape(const Batch& batch) const {
    return {tensor_.stream_rows(batch.rows).numel(), config_.width};
  }

 private:
  Stage& whole();

  ModelConfig config_;
  DataParallel data_;
  TensorParallel tensor_;
  ContextParallel context_;
  std::vector<std::unique_ptr<Stage>> stages_;  // by chunk
  std::vector<Moe*> moe_layers_;
};

}  // namespace phalanx
