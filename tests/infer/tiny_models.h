// What tests of decoding share: small models of every kind, and logits of them.
#pragma once

#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/infer/kv_cache.h"
#include "phalanx/model/transformer.h"

namespace phalanx::test {

using Tokens = std::vector<int32_t>;

inline constexpr int64_t kVocabulary = 23;
inline constexpr int64_t kContext = 2 * KvCache::kPageRows + 13;

/// What the others have in common.
inline ModelConfig base() {
  ModelConfig c;
  c.vocabulary = kVocabulary;
  c.layers = 2;
  c.width = 12;
  c.heads = 3;
  c.context = kContext;
  c.mlp_width = 10;
  c.init_std = 0.5;  // far from uniform: every earlier token changes the next one
  return c;
}

/// Learned positions, layer norms and biases.
inline ModelConfig gpt() {
  ModelConfig c = base();
  c.norm = NormKind::layernorm;
  c.positions = Positions::learned;
  c.mlp = MlpKind::gelu;
  c.bias = true;
  c.dropout = 0.3;  // of training alone
  return c;
}

/// One KV head for all, and a head of its own.
inline ModelConfig llama() {
  ModelConfig c = base();
  c.kv_heads = 1;
  c.tied = false;
  return c;
}

/// Latent attention.
inline ModelConfig mla() {
  ModelConfig c = base();
  c.attention = AttentionKind::mla;
  c.mla = {
      .q_lora_rank = 6, .kv_lora_rank = 5, .qk_nope_head_dim = 4, .qk_rope_head_dim = 2, .v_head_dim = 3};
  return c;
}

/// A mixture of experts behind a dense layer.
inline ModelConfig moe() {
  ModelConfig c = llama();
  c.mlp = MlpKind::moe;
  c.moe = {.experts = 4, .top_k = 2, .expert_width = 5, .shared_experts = 1, .dense_layers = 1};
  return c;
}

/// A kind of model that a test is run with.
struct Case {
  const char* name;
  ModelConfig config;
};

/// A model of one rank, to infer from; equal seeds give equal weights wherever they lie.
struct Model {
  Model(Group& world, const ModelConfig& config, DType dtype, uint64_t seed, Device device = kCpu)
      : mesh(world, {}),
        store(mesh, dtype, {}, {.device = device}),
        transformer(store, resolved(config), seed) {
    store.initialise(seed);
  }
  Mesh mesh;
  ParameterStore store;
  Transformer transformer;
};

/// Any text.
inline Tokens random_tokens(std::mt19937& random, size_t n) {
  Tokens tokens(n);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % kVocabulary);
  return tokens;
}

/// The logits after `text`, whose tokens stand at positions first, first + 1, …
inline Tensor logits_after(Transformer& model, std::span<const int32_t> text, int64_t first, KvStore* cache) {
  const auto n = static_cast<int64_t>(text.size());
  Batch b = {.tokens = Tensor::of(Shape{n}, text),
             .positions = Tensor::empty({n}, DType::i32),
             .sequence_offsets = Tensor::zeros({2}, DType::i64)};
  std::iota(b.positions.span<int32_t>().begin(), b.positions.span<int32_t>().end(),
            static_cast<int32_t>(first));
  b.sequence_offsets.span<int64_t>()[1] = n;
  Tape tape;
  tape.set_keeping(false);
  return run(model.next_token_logits({.batch = &b, .cache = cache}, tape));
}

}  // namespace phalanx::test
