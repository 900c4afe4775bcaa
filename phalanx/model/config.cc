#include "phalanx/model/config.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "phalanx/base/error.h"

namespace phalanx {

namespace {

// What of the model tp does not divide; empty if nothing.
std::string undivided_by_tp(const ModelConfig& c, int tp) {
  const auto divides = [tp](int64_t n) { return n % tp == 0; };
  if (!divides(c.heads)) return format("model.heads {}", c.heads);
  if (!divides(c.kv_heads) && tp % c.kv_heads != 0) return format("model.kv_heads {}", c.kv_heads);
  const bool moe = c.mlp == MlpKind::moe;
  const bool dense = !moe || c.moe.dense_layers > 0;
  if (dense && !divides(c.mlp_width)) return format("model.mlp_width {}", c.mlp_width);
  const int64_t shared = c.moe.shared_experts * c.moe.expert_width;
  return moe && !divides(shared) ? format("moe.shared_experts · moe.expert_width {}", shared) : "";
}

// "1, 2 or 4"
std::string one_of(const std::vector<int>& sizes) {
  std::string text;
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += format("{}{}", i == 0 ? "" : i + 1 == sizes.size() ? " or " : ", ", sizes[i]);
  }
  return text;
}

template <class F>
std::vector<int> sizes_where(int most, F fits) {
  std::vector<int> sizes;
  for (int size = 1; size <= most; ++size) {
    if (fits(size)) sizes.push_back(size);
  }
  return sizes;
}

// That an axis does not divide a size, and what can; empty if it does.
std::string does_not_divide(const char* axis, int size, const char* key, int64_t n) {
  if (n % size == 0) return {};
  const auto sizes = sizes_where(static_cast<int>(n), [n](int fits) { return n % fits == 0; });
  return format("{} = {} does not divide {} {}: it may be {}", axis, size, key, n, one_of(sizes));
}

}  // namespace

std::vector<int> ulysses_choices(const ModelConfig& c, const Layout& layout) {
  const int heads = c.heads / layout.tp;
  const int kv_heads = c.kv_heads / std::min(c.kv_heads, layout.tp);
  return sizes_where(layout.cp, [&](int ranks) {
    return layout.cp % ranks == 0 && heads % ranks == 0 && (kv_heads % ranks == 0 || ranks % kv_heads == 0);
  });
}

int ulysses_ranks(const ModelConfig& c, const Layout& layout, int wanted) {
  return wanted != 0 ? wanted : ulysses_choices(c, layout).back();
}

std::string misfit(const ModelConfig& c, const Layout& layout, int ulysses) {
  const std::string undivided = undivided_by_tp(c, layout.tp);
  if (!undivided.empty()) {
    const auto sizes = sizes_where(c.heads, [&](int tp) { return undivided_by_tp(c, tp).empty(); });
    return format("tp = {} does not fit {}: it may be {}", layout.tp, undivided, one_of(sizes));
  }
  const std::vector<int> choices = ulysses_choices(c, layout);
  if (ulysses != 0 && std::ranges::find(choices, ulysses) == choices.end()) {
    return format("parallel.ulysses {} does not fit cp = {} and the {} heads of a rank of tp: it may be {}",
                  ulysses, layout.cp, c.heads / layout.tp, one_of(choices));
  }
  if (layout.ep * layout.etp == 1) return {};
  if (c.mlp != MlpKind::moe) {
    return format("{} = {} needs model.mlp = \"moe\"", layout.ep > 1 ? "ep" : "etp",
                  layout.ep > 1 ? layout.ep : layout.etp);
  }
  const std::string experts = does_not_divide("ep", layout.ep, "moe.experts", c.moe.experts);
  return experts.empty() ? does_not_divide("etp", layout.etp, "moe.expert_width", c.moe.expert_width)
                         : experts;
}

namespace {

int64_t width_of_a_head(const ModelConfig& c) {
  if (c.width % c.heads != 0) {
    throw Error("model.width {} is not a multiple of model.heads {}", c.width, c.heads);
  }
  return c.width / c.heads;
}

void resolve_mla(ModelConfig& c) {
  MlaConfig& m = c.mla;
  if (m.qk_nope_head_dim == 0) m.qk_nope_head_dim = width_of_a_head(c);
  if (m.qk_rope_head_dim == 0) m.qk_rope_head_dim = (m.qk_nope_head_dim + 3) / 4 * 2;  // even
  if (m.v_head_dim == 0) m.v_head_dim = m.qk_nope_head_dim;
  if (m.kv_lora_rank == 0) m.kv_lora_rank = 4 * m.qk_nope_head_dim;
  const int64_t columns = m.qk_nope_head_dim + m.qk_rope_head_dim;
  if (c.head_dim == 0) c.head_dim = columns;
  if (c.head_dim != columns) {
    throw Error("model.head_dim {} is not model.qk_nope_head_dim {} + model.qk_rope_head_dim {}", c.head_dim,
                m.qk_nope_head_dim, m.qk_rope_head_dim);
  }
  if (m.qk_rope_head_dim % 2 != 0) {
    throw Error("model.qk_rope_head_dim {} is odd; rope rotates pairs", m.qk_rope_head_dim);
  }
  if (c.kv_heads != c.heads) {
    throw Error("model.kv_heads {} with model.attention = \"mla\": each of the {} heads has its own",
                c.kv_heads, c.heads);
  }
  if (c.positions != Positions::rope)
    throw Error("model.attention = \"mla\" needs model.positions = \"rope\"");
  if (c.bias) throw Error("model.bias does not go with model.attention = \"mla\"");
}

// Error: a token cannot find its experts in its groups.
void check_groups(const MoeConfig& m) {
  if (m.experts % m.groups != 0) {
    throw Error("moe.groups {} does not divide moe.experts {}: it may be {}", m.groups, m.experts,
                one_of(sizes_where(m.experts, [&](int groups) { return m.experts % groups == 0; })));
  }
  if (m.top_groups > m.groups) {
    throw Error("moe.top_groups {} is more than moe.groups {}", m.top_groups, m.groups);
  }
  const int eligible = m.experts / m.groups * m.top_groups;
  if (m.top_k > eligible) {
    throw Error("moe.top_k {} is more than the {} experts of moe.top_groups {}", m.top_k, eligible,
                m.top_groups);
  }
}

}  // namespace

ModelConfig resolved(ModelConfig c) {
  if (c.kv_heads == 0) c.kv_heads = c.heads;
  const bool mla = c.attention == AttentionKind::mla;
  if (mla) resolve_mla(c);
  if (c.head_dim == 0) c.head_dim = width_of_a_head(c);
  if (c.init_std == 0) c.init_std = std::sqrt(2.0 / (5.0 * static_cast<double>(c.width)));
  if (c.mlp_width == 0) c.mlp_width = 4 * c.width;
  if (c.yarn.factor > 1 && c.yarn.original_context == 0) {
    c.yarn.original_context = static_cast<double>(c.context) / c.yarn.factor;
  }
  if (c.yarn.factor > 1 && c.yarn.beta_fast < c.yarn.beta_slow) {
    throw Error("model.rope_beta_fast {} is below model.rope_beta_slow {}", c.yarn.beta_fast,
                c.yarn.beta_slow);
  }
  if (c.yarn.factor > 1 && c.rope_theta <= 1) throw Error("model.rope_theta {} is not above 1", c.rope_theta);
  if (c.heads % c.kv_heads != 0) {
    throw Error("model.heads {} is not a multiple of model.kv_heads {}", c.heads, c.kv_heads);
  }
  if (!mla && c.positions == Positions::rope && c.head_dim % 2 != 0) {
    throw Error("model.head_dim {} is odd; rope rotates pairs", c.head_dim);
  }
  if (c.mlp != MlpKind::moe) return c;
  if (c.moe.expert_width == 0) c.moe.expert_width = c.mlp_width / c.moe.top_k;
  if (c.moe.top_k > c.moe.experts) {
    throw Error("moe.top_k {} is more than moe.experts {}", c.moe.top_k, c.moe.experts);
  }
  check_groups(c.moe);
  return c;
}

}  // namespace phalanx
