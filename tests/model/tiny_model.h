#pragma once
// A model on one rank, and random batches for it.

#include <numeric>
#include <random>

#include "phalanx/model/transformer.h"

namespace phalanx::testing {

/// One rank's model, its weights drawn by `seed`.
struct TinyModel {
  TinyModel(Group& world, const Layout& layout, const ModelConfig& config, uint64_t seed)
      : mesh(world, layout), store(mesh, DType::f64), transformer(store, resolved(config), seed) {
    store.initialise(seed);
  }
  Parameter& parameter(const std::string& name) {
    for (Parameter& p : store.all()) {
      if (p.name() == name) return p;
    }
    PHX_CHECK(false, "no parameter {}", name);
    std::abort();
  }

  Mesh mesh;
  ParameterStore store;
  Transformer transformer;
};

/// Sequences of `context` random tokens and targets, some of those ignored; rows count from `first_row`.
inline Batch random_batch(std::mt19937& random, int64_t sequences, const ModelConfig& c,
                          int64_t first_row = 0) {
  const int64_t rows = sequences * c.context;
  Batch b = {Tensor::empty({rows}, DType::i32), Tensor::empty({rows}, DType::i32),
             Tensor::empty({rows}, DType::i32), Tensor::empty({sequences + 1}, DType::i64),
             Tensor::empty({rows}, DType::i64)};
  const auto vocabulary = static_cast<uint32_t>(c.vocabulary);
  for (int64_t i = 0; i < rows; ++i) {
    b.tokens.data<int32_t>()[i] = static_cast<int32_t>(random() % vocabulary);
    b.targets.data<int32_t>()[i] = random() % 6 == 0 ? -1 : static_cast<int32_t>(random() % vocabulary);
    b.positions.data<int32_t>()[i] = static_cast<int32_t>(i % c.context);
    b.rows.data<int64_t>()[i] = first_row + i;
  }
  for (int64_t s = 0; s <= sequences; ++s) b.sequence_offsets.data<int64_t>()[s] = s * c.context;
  return b;
}

/// Sequences [begin, end) of a batch.
inline Batch sequences_of(const Batch& b, int64_t begin, int64_t end, int64_t context) {
  Batch part = b;
  for (Tensor* t : {&part.tokens, &part.targets, &part.positions, &part.rows}) {
    *t = t->slice(begin * context, end * context);
  }
  part.sequence_offsets = b.sequence_offsets.slice(0, end - begin + 1);
  return part;
}

}  // namespace phalanx::testing
