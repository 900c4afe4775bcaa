#include "phalanx/model/config.h"

#include <cmath>

#include "phalanx/base/error.h"

namespace phalanx {

ModelConfig resolved(ModelConfig c) {
  if (c.kv_heads == 0) c.kv_heads = c.heads;
  if (c.head_dim == 0) {
    if (c.width % c.heads != 0)
      throw Error("model.width {} is not a multiple of model.heads {}", c.width, c.heads);
    c.head_dim = c.width / c.heads;
  }
  if (c.init_std == 0) c.init_std = std::sqrt(2.0 / (5.0 * static_cast<double>(c.width)));
  if (c.mlp_width == 0) c.mlp_width = 4 * c.width;
  if (c.heads % c.kv_heads != 0) {
    throw Error("model.heads {} is not a multiple of model.kv_heads {}", c.heads, c.kv_heads);
  }
  if (c.positions == Positions::rope && c.head_dim % 2 != 0) {
    throw Error("model.head_dim {} is odd; rope rotates pairs", c.head_dim);
  }
  if (c.mlp != MlpKind::moe) return c;
  if (c.moe.expert_width == 0) c.moe.expert_width = c.mlp_width / c.moe.top_k;
  if (c.moe.top_k > c.moe.experts) {
    throw Error("moe.top_k {} is more than moe.experts {}", c.moe.top_k, c.moe.experts);
  }
  return c;
}

}  // namespace phalanx
