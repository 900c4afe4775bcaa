// The model: embedding, blocks, norm, output head, loss.
#pragma once

#include <memory>
#include <vector>

#include "phalanx/base/philox.h"
#include "phalanx/model/attention.h"
#include "phalanx/model/moe.h"
#include "phalanx/model/token_table.h"

namespace phalanx {

/// x += attention(norm(x)); x += mlp(norm(x)); dropout on each branch.
class Block final : public Layer {
 public:
  Block(const Builder& build, int layer, uint64_t seed);
  Task<Tensor> forward(Tensor x_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;
  /// Null when this block's MLP is dense.
  Moe* moe() { return moe_; }

 private:
  struct Branch {
    std::unique_ptr<Layer> norm;
    std::unique_ptr<Layer> layer;
    RandomStream dropout;
  };
  Task<Tensor> forward(Branch* branch, Tensor x_TD, Pass pass, Tape& tape);
  Task<Tensor> backward(Branch* branch, Tensor dy_TD, Pass pass, Tape& tape);

  TensorParallel& tensor_;
  double dropout_;
  Moe* moe_ = nullptr;
  std::vector<Branch> branches_;  // attention, mlp
};

/// Parameters: embedding.w [V, D], positions.w [context, D] when learned, layers.N.…, norm.…, head.w [V, D]
/// unless tied.
class Transformer {
 public:
  /// `config` is resolved. `seed` names the dropout. `sequence`: sequence parallelism over tp. `ulysses`: see
  /// ulysses_ranks. Error: the mesh's axes do not divide the model.
  Transformer(ParameterStore& store, const ModelConfig& config, uint64_t seed, bool sequence = false,
              int ulysses = 0);

  /// Σ loss over the batch's targets that count. The tape keeps what backward needs.
  Task<double> forward(Pass pass, Tape& tape);
  /// Adds the gradient of pass.scale · (Σ loss + balance losses) to the parameters'.
  Task<> backward(Pass pass, Tape& tape);
  /// The logits of the batch's last token, [1, V]; the tape keeps nothing if it discards.
  Task<Tensor> next_token_logits(Pass pass, Tape& tape);

  const ModelConfig& config() const { return config_; }
  /// Which rows of a microbatch this rank has.
  const ContextShare& context_share() const { return context_.share(); }
  /// The MoE layers, by depth.
  const std::vector<Moe*>& moe_layers() const { return moe_layers_; }

 private:
  Task<Tensor> hidden(Pass pass, Tape& tape);
  TokenTable& head() { return head_ ? *head_ : embedding_; }

  ModelConfig config_;
  TensorParallel tensor_;
  ContextParallel context_;
  TokenTable embedding_;
  Parameter* positions_;  // or null: rope
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Moe*> moe_layers_;
  std::unique_ptr<Layer> norm_;
  std::unique_ptr<TokenTable> head_;  // or null: tied
  RandomStream dropout_;
};

}  // namespace phalanx
