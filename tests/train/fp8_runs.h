// Models whose linear layers multiply in FP8, and layouts that cut them where their blocks end.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "phalanx/train/verify.h"
#include "tests/train/small_runs.h"

namespace phalanx {

enum class Fp8Model : uint8_t { llama, mla, moe };

inline std::string fp8_name(Fp8Model kind) {
  constexpr std::array kNames = {"llama", "mla", "moe"};
  return kNames.at(static_cast<size_t>(kind));
}

/// A rank of two has a multiple of 128 features of each kind.
inline VerifyOptions fp8_options(Fp8Model kind, unsigned seed) {
  const bool mla = kind == Fp8Model::mla;
  TrainConfig c = mla ? small_mla({}, "sequential") : small_llama({}, "sequential");
  ModelConfig& m = c.model;
  m.layers = 2;
  m.width = 128;
  m.heads = 2;
  m.head_dim = 128;
  m.kv_heads = 2;
  m.mlp_width = 256;
  m.context = 32;
  m.vocabulary = 61;
  // Branches no larger than the embedding: else tokens differ by little of what is quantised, and gradients,
  // which are sums of such differences, by much more than the values.
  m.init_std = 0.004;
  if (mla) {
    m.heads = 4;
    m.kv_heads = 4;
    m.head_dim = 0;
    m.mla = {.q_lora_rank = 48,
             .kv_lora_rank = 32,
             .qk_nope_head_dim = 64,
             .qk_rope_head_dim = 64,
             .v_head_dim = 64};
  }
  if (kind == Fp8Model::moe) {
    m.mlp = MlpKind::moe;
    // Each token at every expert: what is quantised may not change the choice.
    m.moe = {.experts = 4, .top_k = 4, .expert_width = 256, .shared_experts = 1, .dense_layers = 1};
  }
  return {.model = resolved(m), .dtype = DType::f32, .products = Products::fp8, .seed = seed};
}

inline std::vector<VerifyCase> fp8_cases(Fp8Model kind) {
  if (kind == Fp8Model::moe) {
    return {{.layout = {}, .recompute = Recompute::mlp},
            {.layout = {.dp = 2, .ep = 2}},
            {.layout = {.dp = 2, .etp = 2}},
            {.layout = {.pp = 2}, .schedule = "dualpipe"},
            {.layout = {.dp = 2, .tp = 2, .ep = 4}, .sequence = true}};
  }
  return {{.layout = {}, .recompute = Recompute::full},
          {.layout = {.dp = 2}, .zero = Zero::weights},
          {.layout = {.pp = 2}, .schedule = "zb-h1"},
          {.layout = {.cp = 2}, .ulysses = 1},
          {.layout = {.tp = 2}},
          {.layout = {.tp = 2}, .sequence = true},
          {.layout = {.tp = 2}, .sequence = true, .tp_overlap = true},
          {.layout = {.tp = 2}, .tp_overlap = true}};
}

}  // namespace phalanx
