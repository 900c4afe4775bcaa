// One layer of the model: attention and MLP, each on a branch of the residual stream.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "phalanx/base/philox.h"
#include "phalanx/model/layer.h"
#include "phalanx/model/moe.h"
#include "phalanx/model/norm.h"

namespace phalanx {

/// Dropout on rows of the stream in training. `rows`: i64, of the step's whole batch, those of x. Its own
/// backward.
Tensor dropped(const Tensor& x_TD, const Pass& pass, const Tensor& rows, const RandomStream& stream,
               double rate);

/// x += attention(norm(x)); x += mlp(norm(x)); dropout on each branch. Parameters NAME.attention_norm.…,
/// NAME.attention.…, NAME.mlp_norm.…, and NAME.mlp.… or NAME.moe.….
class Block {
 public:
  /// `layer`: its number in the model (ModelConfig).
  Block(const Builder& build, const std::string& name, int layer, uint64_t seed);
  /// The stream's rows [T, D] before and behind it, as Layer's.
  Task<Tensor> forward(Tensor x_TD, Pass pass, Tape& tape);
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape);
  /// Null when this block's MLP is dense.
  Moe* moe() { return moe_; }

 private:
  struct Branch {
    const char* name;  // on a trace
    std::unique_ptr<Norm> norm;
    std::unique_ptr<Layer> layer;
    RandomStream dropout;
  };
  Task<Tensor> forward(Branch* branch, Tensor x_TD, Pass pass, Tape& tape);
  // Both branches, with what each saves.
  Task<Tensor> run(Tensor x_TD, Pass pass, Tape& tape);
  Task<Tensor> backward(Branch* branch, Tensor dy_TD, Pass pass, Tape& tape);

  std::string name_;  // "layers.3"
  TensorParallel& tensor_;
  double dropout_;
  Moe* moe_ = nullptr;
  Tape forgetful_;
  std::vector<Branch> branches_;  // attention, mlp
};

}  // namespace phalanx
