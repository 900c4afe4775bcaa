// Models that more than one benchmark runs.
#pragma once

#include "phalanx/model/config.h"

namespace phalanx::bench {

/// Of Llama's family, with 8 heads of keys and values, an MLP of 8192 and sequences of 4096: (16, 2048, 32)
/// has 1.24 billion parameters, (28, 3072, 24) 3.2.
inline ModelConfig llama(int layers, int64_t width, int heads) {
  ModelConfig m;
  m.layers = layers;
  m.width = width;
  m.heads = heads;
  m.kv_heads = 8;
  m.context = 4096;
  m.vocabulary = 128256;
  m.norm = NormKind::rmsnorm;
  m.positions = Positions::rope;
  m.rope_theta = 500000;
  m.mlp = MlpKind::swiglu;
  m.mlp_width = 8192;
  m.bias = false;
  m.tied = true;
  return m;
}

}  // namespace phalanx::bench
