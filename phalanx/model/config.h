// What a model is: the numbers that its layers are built from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "phalanx/comm/mesh.h"
#include "phalanx/ops/rope.h"
#include "phalanx/ops/route.h"

namespace phalanx {

enum class NormKind : uint8_t { layernorm, rmsnorm };
/// learned: a table added to the embedding; rope: queries and keys are rotated.
enum class Positions : uint8_t { learned, rope };
/// gqa: grouped KV heads; mla: keys and values from a narrow latent vector of each token (DeepSeek-V2, 2024,
/// section 2.1).
enum class AttentionKind : uint8_t { gqa, mla };
enum class MlpKind : uint8_t { gelu, gelu_tanh, swiglu, moe };

/// Sizes of multi-head latent attention, by their names in Hugging Face's DeepSeek-V3. Used when
/// ModelConfig::attention is mla: then each head has keys and values of its own, kv_heads = heads.
struct MlaConfig {
  int64_t q_lora_rank = 0;       ///< width of the queries' latent; 0: queries come from the stream
  int64_t kv_lora_rank = 0;      ///< of the keys' and values'; 0: 4 · qk_nope_head_dim
  int64_t qk_nope_head_dim = 0;  ///< columns of a head of q and k that do not turn; 0: width / heads
  int64_t qk_rope_head_dim = 0;  ///< that do, of k the same for all heads; 0: qk_nope_head_dim / 2
  int64_t v_head_dim = 0;        ///< columns of a head of v; 0: qk_nope_head_dim
};

/// Experts are SwiGLU. Used when ModelConfig::mlp is moe.
struct MoeConfig {
  int experts = 8;
  int top_k = 2;
  int64_t expert_width = 0;  ///< 0: mlp_width / top_k
  int shared_experts = 0;    ///< of expert_width each, seen by every token
  int dense_layers = 0;      ///< the first layers have a dense SwiGLU of mlp_width instead
  int share_layers = 1;      ///< so many neighbouring MoE layers use the same experts, each by its own router
  Scores scores = Scores::softmax;
  bool normalise = true;       ///< chosen weights are divided by their sum
  double scaling = 1;          ///< of the chosen weights
  double balance_loss = 0.01;  ///< coefficient of the balance loss (route.h)
  int groups = 1;              ///< experts of a token come from the best `top_groups` of so many groups
  int top_groups = 1;
  /// After each step the bias by which experts are chosen grows by this for those chosen less often than the
  /// mean, and falls for the others (L. Wang et al. 2024, algorithm 1). 0: it stays as it is, at first 0.
  double bias_rate = 0;
  double z_loss = 0;    ///< coefficient of the router z-loss (route.h)
  double capacity = 0;  ///< of an expert, in even loads of a sequence (within_capacity, route.h); 0: no limit
  /// A token's experts are summed one by one, by slot: bits do not depend on which rank has which expert
  /// (ep::PairOrder::every_slot), and neither do those of the gradient norm.
  bool exact_sums = false;
  /// Between hosts, a token's row goes once to each host, and sums are made inside hosts first (ep::Way).
  bool two_level = false;
};

/// A decoder of `layers` blocks: x += attention(norm(x)); x += mlp(norm(x)).
struct ModelConfig {
  int64_t vocabulary = 0;
  int layers = 4;
  int64_t width = 128;
  int heads = 4;
  int kv_heads = 0;      ///< 0: heads
  int64_t head_dim = 0;  ///< of q and k; 0: width / heads, or with mla what its parts make
  int64_t context = 64;  ///< longest sequence, in tokens
  NormKind norm = NormKind::rmsnorm;
  double norm_eps = 1e-5;
  Positions positions = Positions::rope;
  double rope_theta = 10000;
  MlpKind mlp = MlpKind::swiglu;
  int64_t mlp_width = 0;  ///< 0: 4 · width
  bool bias = false;      ///< in linears and layer norms
  bool tied = true;       ///< the output head is the embedding table
  double dropout = 0;     ///< on the embedding and on each residual branch
  /// Of the initial weights; 0: √(2 / (5 · width)), "small init" of T. Nguyen and J. Salazar, Transformers
  /// without Tears, 2019. What adds to the residual stream has it divided by √(2 · layers), as in GPT-2.
  double init_std = 0;
  MoeConfig moe;
  AttentionKind attention = AttentionKind::gqa;
  MlaConfig mla;
  Yarn yarn;  ///< factor above 1: rope for a longer context; original_context 0: context / factor
  /// Depths of multi-token prediction (model/mtp.h). Depth k, from 0, has a block like the last layer's,
  /// which counts as layer `layers` + k.
  int mtp = 0;
  double mtp_weight = 0.3;  ///< of the mean of the depths' losses

  /// Columns of a head of v, when resolved.
  int64_t value_dim() const { return attention == AttentionKind::mla ? mla.v_head_dim : head_dim; }
  /// With those of multi-token prediction.
  int blocks() const { return layers + mtp; }
  /// Whether that layer's MLP is a mixture of experts.
  bool has_experts(int layer) const {
    return mlp == MlpKind::moe && std::min(layer, layers - 1) >= moe.dense_layers;
  }
  /// The first of the layers that use the same experts as this one.
  int layer_of_experts(int layer) const {
    return layer < layers ? layer - (layer - moe.dense_layers) % moe.share_layers : layer;
  }
};

/// Why a layout cannot cut a (resolved) model, and which sizes of the axis can; empty if it can. `ulysses`:
/// see ulysses_ranks.
std::string misfit(const ModelConfig& config, const Layout& layout, int ulysses = 0);

/// How many ranks of cp may exchange heads (parallel/context_parallel.h), ascending from 1: what divides cp
/// and the heads of a rank of tp, and the KV heads or is a multiple of them.
std::vector<int> ulysses_choices(const ModelConfig& config, const Layout& layout);
/// How many do: `wanted`, or, if 0, the most.
int ulysses_ranks(const ModelConfig& config, const Layout& layout, int wanted);

/// The config with every 0 that means "from the others" replaced. Error: sizes that do not divide.
ModelConfig resolved(ModelConfig config);

}  // namespace phalanx
