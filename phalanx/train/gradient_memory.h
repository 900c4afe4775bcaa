// What the gradients of a rank's weights take in the course of a training step, from the config alone.
#pragma once

#include <set>
#include <vector>

#include "phalanx/train/local_elements.h"

namespace phalanx {

/// Bytes for the gradients of one chunk, in the order in which backward comes to its weights.
struct ChunkGradients {
  int64_t head = 0;  // and what else comes before the layers
  int64_t layer = 0;
  int64_t all = 0;
};

/// What stays of a unit's gradients when they are summed, of all: 1, or with ZeRO-2 and 3 the rank's share.
struct KeptGradients {
  double left = 1;
  DType dtype = DType::f32;
};
/// Each unit has a block of its own.
ChunkGradients chunk_gradients(const ModelConfig& config, const Layout& layout, const StagePart& part,
                               const KeptGradients& kept);

/// Those of the step before stay until forward comes to their weights, and go before the first backward of a
/// chunk makes new ones.
class StepGradients {
 public:
  explicit StepGradients(const std::vector<ChunkGradients>& chunks);
  /// Forward comes to a chunk.
  void forward(int chunk);
  /// What a backward brings: nothing where the gradients are there already.
  ChunkGradients backward(int chunk) const;
  /// That backward has ended.
  void made(int chunk);
  /// Bytes that are there now.
  int64_t sum() const;

 private:
  const std::vector<ChunkGradients>& chunks_;
  std::vector<int64_t> now_;  // by chunk
  std::set<int> made_;
};

}  // namespace phalanx
