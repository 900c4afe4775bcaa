// Multi-token prediction: DeepSeek-V3, 2024, section 2.2. Modules in a row behind the last layer, in training
// alone; each predicts one token further.
#pragma once

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "phalanx/model/block.h"
#include "phalanx/model/linear.h"
#include "phalanx/model/norm.h"
#include "phalanx/model/token_table.h"

namespace phalanx {

/// Depth k, from 0, of row i: h' = Block(M [norm(e); norm(h)]), with h of the depth before (of depth 0 the
/// stream behind the last layer) and e the embedding of token i + k + 1. M's halves are products of their
/// own, so that nothing is concatenated. Parameters, NAME being mtp.k: NAME.embedding_norm,
/// NAME.stream_norm, NAME.from_embedding.w and NAME.from_stream.w [D, D] (whole on every rank of tp),
/// NAME.attention_norm… (Block), NAME.norm.
class MtpModule {
 public:
  MtpModule(const Builder& build, int depth, uint64_t seed);

  /// h' of the stream's rows, of h and e.
  Task<Tensor> forward(Tensor h_TD, Tensor e_TD, Pass pass, Tape& tape);
  struct Gradients {
    Tensor h_TD;
    Tensor e_TD;
  };
  Task<Gradients> backward(Tensor dy_TD, Pass pass, Tape& tape);

  /// Of h', before the output head.
  Norm& norm() { return *norm_; }
  /// Null: its MLP is dense.
  Moe* moe() { return block_.moe(); }

 private:
  std::unique_ptr<Norm> embedding_norm_;
  std::unique_ptr<Norm> stream_norm_;
  Linear from_embedding_;
  Linear from_stream_;
  Block block_;
  std::unique_ptr<Norm> norm_;
};

/// All depths, and their losses: depth k's is of the targets k + 1 places on (Batch::ahead), by the model's
/// own embedding and output head. To pass.scale · Σ loss comes pass.scale · mtp_weight · the mean over
/// depths.
class Mtp {
 public:
  /// The tables outlive it and are held by whoever calls. `layers`: so many does the stage have before it.
  Mtp(const Builder& build, TokenTable& embedding, TokenTable& head, int layers, uint64_t seed);

  /// From the stream behind the last layer to the losses.
  Task<> forward(Tensor h_TD, Pass pass, Tape& tape);
  /// The gradient of that stream.
  Task<Tensor> backward(Pass pass, Tape& tape);
  /// As Stage's.
  void expect_passes(int microbatches);

  Moe* moe(int depth) { return module(depth).moe(); }
  /// Σ over the targets that count, the mean over depths, of what went forward since the last call; ranks of
  /// tp have the same.
  double take_loss() { return loss_.defined() ? number_of(std::exchange(loss_, Tensor())) / depths() : 0; }

 private:
  int depths() const { return static_cast<int>(modules_.size()); }
  MtpModule& module(int depth) { return *modules_[static_cast<size_t>(depth)]; }
  DataParallel::Part& weights(int depth) { return weights_[static_cast<size_t>(depth)]; }
  Task<Tensor> forward(int depth, Tensor h_TD, Pass pass, Tape& tape);
  Task<Tensor> backward(int depth, Tensor dy_TD, Pass pass, Tape& tape);

  DataParallel& data_;
  TokenTable& embedding_;
  TokenTable& head_;
  int layers_;
  double weight_;  // of one depth's loss
  std::vector<std::unique_ptr<MtpModule>> modules_;
  std::deque<DataParallel::Part> weights_;
  Tensor loss_;  // f64 [1]: Σ over depths and passes since it was taken
};

}  // namespace phalanx
