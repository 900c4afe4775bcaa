#include "phalanx/model/flops.h"

#include <algorithm>

namespace phalanx {
namespace {

struct Matrices {
  int64_t all = 0;
  int64_t active = 0;  // of one token
};

Matrices mla_matrices(const ModelConfig& c) {
  const MlaConfig& m = c.mla;
  const int64_t q_in = m.q_lora_rank > 0 ? m.q_lora_rank : c.width;
  const int64_t latents = c.width * (m.q_lora_rank + m.kv_lora_rank + m.qk_rope_head_dim);
  const int64_t head =
      q_in * c.head_dim + m.kv_lora_rank * (m.qk_nope_head_dim + m.v_head_dim) + m.v_head_dim * c.width;
  const int64_t n = latents + c.heads * head;
  return {n, n};
}

Matrices attention_matrices(const ModelConfig& c) {
  if (c.attention == AttentionKind::mla) return mla_matrices(c);
  const int64_t n = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
  return {n, n};
}

Matrices mlp_matrices(const ModelConfig& c, int layer, const Layout& layout) {
  if (c.has_experts(layer)) {
    const int64_t expert = 3 * c.width * c.moe.expert_width;
    const int64_t router = c.width * c.moe.experts;
    const int64_t shared = c.moe.shared_experts * expert / layout.tp;
    const int64_t sets = c.layer_of_experts(layer) == layer ? 1 : 0;  // of experts, counted here
    return {router + shared + sets * c.moe.experts / layout.ep * (expert / layout.etp),
            router + shared + c.moe.top_k * expert};
  }
  const bool gated = c.mlp == MlpKind::swiglu || c.mlp == MlpKind::moe;
  const int64_t n = (gated ? 3 : 2) * c.width * c.mlp_width;
  return {n, n};
}

int64_t vector_parameters(const ModelConfig& c, const Layout& layout) {
  const bool norm_bias = c.norm == NormKind::layernorm && c.bias;
  int64_t n = (2 * c.blocks() + 1 + 3 * c.mtp) * c.width * (norm_bias ? 2 : 1);
  if (c.attention == AttentionKind::mla) n += c.blocks() * (c.mla.q_lora_rank + c.mla.kv_lora_rank);
  if (!c.bias) return n;
  const int64_t attention = c.heads * c.head_dim + 2 * c.kv_heads * c.head_dim + c.width;
  n += c.blocks() * attention;
  for (int layer = 0; layer < c.blocks(); ++layer) {
    const bool gated = c.mlp == MlpKind::swiglu || c.mlp == MlpKind::moe;
    if (c.has_experts(layer)) {
      if (c.moe.shared_experts > 0) n += 2 * c.moe.shared_experts * c.moe.expert_width / layout.tp + c.width;
    } else {
      n += (gated ? 2 : 1) * c.mlp_width + c.width;
    }
  }
  return n;
}

// What leads into the blocks of multi-token prediction, from the stream and from embeddings.
int64_t mtp_matrices(const ModelConfig& c) { return c.mtp * 2 * c.width * c.width; }

// `c` with the sizes that a rank of the layout has of what tp cuts.
ModelConfig cut(ModelConfig c, const Layout& layout) {
  c.vocabulary = (c.vocabulary + layout.tp - 1) / layout.tp;
  c.heads /= layout.tp;
  c.kv_heads /= std::min(c.kv_heads, layout.tp);
  c.mlp_width /= layout.tp;
  return c;
}

ParameterCount count(const ModelConfig& c, const Layout& layout) {
  Matrices sum = {mtp_matrices(c), mtp_matrices(c)};
  for (int layer = 0; layer < c.blocks(); ++layer) {
    for (const Matrices& m : {attention_matrices(c), mlp_matrices(c, layer, layout)}) {
      sum.all += m.all;
      sum.active += m.active;
    }
  }
  int64_t tables = c.vocabulary * c.width * (c.tied ? 1 : 2);
  if (c.positions == Positions::learned) tables += c.context * c.width;
  const int64_t rest = tables + vector_parameters(c, layout);
  return {sum.all + rest, sum.active + rest};
}

}  // namespace

ParameterCount count_parameters(const ModelConfig& c) { return count(c, {}); }

int64_t count_local_parameters(const ModelConfig& c, const Layout& layout) {
  return count(cut(c, layout), layout).total;
}

TokenFlops training_flops_per_token(const ModelConfig& c) {
  double products = static_cast<double>((1 + c.mtp) * c.vocabulary * c.width + mtp_matrices(c));  // heads
  for (int layer = 0; layer < c.blocks(); ++layer) {
    products += static_cast<double>(attention_matrices(c).active + mlp_matrices(c, layer, {}).active);
  }
  const double attention =
      6.0 * c.blocks() * c.heads * static_cast<double>((c.head_dim + c.value_dim()) * c.context);
  return {.products = 6 * products, .attention = attention};
}

}  // namespace phalanx
