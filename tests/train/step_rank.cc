#include "tests/train/step_rank.h"

#include <algorithm>
#include <random>

#include "phalanx/model/slices.h"

namespace phalanx {

std::vector<Batch> batches(const Mesh& mesh, const ContextShare& share, const ModelConfig& config,
                           unsigned seed, int slices) {
  const int64_t context = config.context;
  const auto vocabulary = static_cast<uint64_t>(config.vocabulary);
  std::mt19937 random(seed);
  std::vector<Batch> out;
  const int64_t local = kSequences / mesh.size(Axis::dp);
  const int64_t begin = local * mesh.coordinate(Axis::dp) * context;
  for (int64_t m = 0; m < kMicrobatches; ++m) {
    const int64_t tokens = kSequences * context;
    Batch b = {Tensor::empty({tokens}, DType::i32), Tensor::empty({tokens}, DType::i32),
               Tensor::empty({tokens}, DType::i32), Tensor::empty({2 * local + 1}, DType::i64),
               Tensor::empty({tokens}, DType::i64)};
    std::vector<int64_t> starts;  // of documents
    for (int64_t at = 0; at < tokens; at += context) {
      const auto cut = static_cast<int64_t>(random() % static_cast<uint64_t>(context + 1));
      starts.insert(starts.end(), {at, at + cut});
    }
    starts.push_back(tokens);
    for (int64_t i = 0; i < tokens; ++i) {
      const auto token = [&] { return static_cast<int32_t>(random() % vocabulary); };
      b.tokens.data<int32_t>()[i] = token();
      b.targets.data<int32_t>()[i] = random() % 5 == 0 ? -1 : token();
      b.positions.data<int32_t>()[i] = static_cast<int32_t>(i - *(std::ranges::upper_bound(starts, i) - 1));
      b.rows.data<int64_t>()[i] = m * tokens + i;
    }
    for (int64_t s = 0; s <= 2 * local; ++s) {
      b.sequence_offsets.data<int64_t>()[s] = starts[static_cast<size_t>(begin / context * 2 + s)] - begin;
    }
    for (Tensor* t : {&b.tokens, &b.targets, &b.positions, &b.rows})
      *t = t->slice(begin, begin + local * context);
    add_slices(out, with_ahead(b, config.mtp), context, slices, share);
  }
  return out;
}

}  // namespace phalanx
