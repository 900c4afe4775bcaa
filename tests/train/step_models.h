#pragma once
// Small models of every kind, with odd sizes.

#include "phalanx/model/config.h"

namespace phalanx {

inline constexpr int64_t kVocabulary = 11;
inline constexpr int64_t kContext = 7;

inline ModelConfig base_config() {
  ModelConfig c;
  c.vocabulary = kVocabulary;
  c.layers = 2;
  c.width = 12;
  c.heads = 3;
  c.context = kContext;
  c.mlp_width = 10;
  c.init_std = 0.3;  // far from uniform, so that routing and attention matter
  return c;
}

inline ModelConfig gpt() {
  ModelConfig c = base_config();
  c.norm = NormKind::layernorm;
  c.positions = Positions::learned;
  c.mlp = MlpKind::gelu;
  c.bias = true;
  return c;
}

inline ModelConfig llama() {
  ModelConfig c = base_config();
  c.kv_heads = 1;
  c.tied = false;
  return c;
}

inline ModelConfig moe() {
  ModelConfig c = llama();
  c.mlp = MlpKind::moe;
  c.layers = 3;
  c.moe = {.experts = 4, .top_k = 2, .expert_width = 5, .shared_experts = 1, .dense_layers = 1};
  return c;
}

inline ModelConfig sigmoid_moe_with_dropout() {
  ModelConfig c = moe();
  c.moe.scores = Scores::sigmoid;
  c.moe.scaling = 1.5;
  c.moe.shared_experts = 0;
  c.dropout = 0.2;
  return c;
}

// With heads and widths that tp = 2 and 4 divide.
inline ModelConfig divisible(ModelConfig c) {
  c.heads = 4;
  c.head_dim = 4;
  c.mlp_width = 12;
  if (c.kv_heads > 0) c.kv_heads = 2;  // fewer than four ranks
  c.moe.expert_width = 8;
  return c;
}

// So that ranks of cp = 2 or 4 meet within a sequence.
inline ModelConfig six_tokens(ModelConfig c) {
  c = divisible(c);
  c.context = 6;
  return c;
}

inline ModelConfig with_vocabulary(ModelConfig c, int64_t vocabulary) {
  c.vocabulary = vocabulary;
  return c;
}

inline ModelConfig with_dropout(ModelConfig c) {
  c.dropout = 0.2;
  return c;
}

}  // namespace phalanx
