#include "phalanx/train/gradient_memory.h"

#include <numeric>

#include "phalanx/train/layer_memory.h"

namespace phalanx {

ChunkGradients chunk_gradients(const ModelConfig& c, const Layout& layout, const StagePart& part,
                               const KeptGradients& kept) {
  const Elements all = elements_of(c, layout, {part});
  const StagePart without_ends = {.first_layer = part.first_layer, .end_layer = part.end_layer};
  const Elements layers = elements_of(c, layout, {without_ends});
  const auto bytes = [&](int64_t elements) {
    const auto left = static_cast<int64_t>(static_cast<double>(elements) * kept.left);
    return left > 0 ? LayerMemory::block(left, static_cast<int64_t>(dtype_size(kept.dtype))) : 0;
  };
  // An embedding of its own comes behind the layers.
  const int64_t ends = all.all - layers.all;
  const int64_t behind = part.embeds && !(part.predicts && c.tied) ? std::min(ends, all.table) : 0;
  ChunkGradients g = {.head = bytes(ends - behind), .layer = bytes(layers.layer)};
  g.all = g.head + (part.end_layer - part.first_layer) * g.layer + bytes(behind);
  return g;
}

StepGradients::StepGradients(const std::vector<ChunkGradients>& chunks) : chunks_(chunks) {
  for (const ChunkGradients& chunk : chunks) now_.push_back(chunk.all);
}

void StepGradients::forward(int chunk) {
  if (!made_.contains(chunk)) now_[static_cast<size_t>(chunk)] = 0;
}

ChunkGradients StepGradients::backward(int chunk) const {
  return made_.contains(chunk) ? ChunkGradients() : chunks_[static_cast<size_t>(chunk)];
}

void StepGradients::made(int chunk) {
  made_.insert(chunk);
  now_[static_cast<size_t>(chunk)] = chunks_[static_cast<size_t>(chunk)].all;
}

int64_t StepGradients::sum() const { return std::accumulate(now_.begin(), now_.end(), int64_t{0}); }

}  // namespace phalanx
