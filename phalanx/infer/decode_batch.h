// Several sequences that are decoded at once, a token of each a step.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "phalanx/infer/paged_kv.h"
#include "phalanx/model/transformer.h"
#include "phalanx/ops/argmax.h"

namespace phalanx {

/// Where the model lies on a GPU, so do texts, positions and choices, and the host waits for nothing that it
/// does not ask for. A step of a dense model is then recorded at its second time, and replayed from there on.
class DecodeBatch {
 public:
  /// Sequences of at most `capacity` tokens, a context of the model at most.
  DecodeBatch(Transformer& model, int sequences, int64_t capacity);

  /// Reads a text for each sequence, at least one token, in place of what is there: the logits [B, V] after
  /// their last tokens, where the model lies.
  Tensor read(std::span<const std::vector<int32_t>> texts);
  /// Each sequence goes on with the likeliest token, or with `tokens` (one each): the logits after it, which
  /// stay until the next step.
  Tensor step(std::span<const int32_t> tokens = {});

  /// Tokens that have been read.
  int64_t length(int sequence) const { return cache_.length(sequence); }
  /// The texts, each with the likeliest token behind what was read. Waits for the device.
  std::vector<std::vector<int32_t>> texts() const;

 private:
  void compute_step();

  Transformer& model_;
  PagedKv cache_;
  Tape tape_;
  DecodeRows rows_;                 // the tokens that were read last
  Tensor chosen_B_;                 // i32: the likeliest ones behind them
  Tensor logits_BV_;                // of the last step
  Batch batch_;                     // of a step: tokens and positions are those of rows_
  std::shared_ptr<void> recorded_;  // on a GPU
};

}  // namespace phalanx
