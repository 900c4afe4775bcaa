// Models whose linear layers multiply in FP8, and layouts that cut them where their blocks end.
#pragma once

#include <vector>

#include "phalanx/train/verify.h"
#include "tests/train/small_runs.h"

namespace phalanx {

/// Four heads of 64: a rank of two has 128 features.
inline VerifyOptions fp8_options(bool mla, unsigned seed) {
  TrainConfig c = mla ? small_mla({}, "sequential") : small_llama({}, "sequential");
  ModelConfig& m = c.model;
  m.layers = 2;
  m.width = 256;
  m.heads = 4;
  m.head_dim = 64;
  m.kv_heads = mla ? 4 : 2;
  m.mlp_width = 512;
  m.context = 64;
  m.vocabulary = 61;
  if (mla) {
    m.head_dim = 0;
    m.mla = {.q_lora_rank = 48,
             .kv_lora_rank = 32,
             .qk_nope_head_dim = 48,
             .qk_rope_head_dim = 16,
             .v_head_dim = 64};
  }
  return {.model = resolved(m), .dtype = DType::f32, .products = Products::fp8, .seed = seed};
}

inline std::vector<VerifyCase> fp8_cases() {
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
