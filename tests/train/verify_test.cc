// Every option of routing at once, and multi-token prediction, under many layouts: gradients, losses and the
// routers' biases are those of one rank.
#include "phalanx/train/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace phalanx {
namespace {

ModelConfig every_option(Scores scores) {
  ModelConfig c = {.vocabulary = 23, .layers = 4, .width = 16, .heads = 4, .context = 12, .mlp_width = 8};
  c.mlp = MlpKind::moe;
  c.init_std = 0.3;  // far from uniform, so that routing matters
  c.moe = {.experts = 8,
           .top_k = 3,
           .expert_width = 8,
           .shared_experts = 1,
           .dense_layers = 1,
           .share_layers = 2,
           .scores = scores,
           .scaling = 1.5,
           .balance_loss = 0.05,
           .groups = 4,
           .top_groups = 2,
           .bias_rate = 0.02,
           .z_loss = 0.02,
           .capacity = 1.1};  // ⌈1.1 · 12 · 3 / 8⌉ = 5 tokens
  return resolved(c);
}

// Latent attention; the last layers are experts, and so are the two depths.
ModelConfig two_depths() {
  ModelConfig c = every_option(Scores::sigmoid);
  c.attention = AttentionKind::mla;
  c.kv_heads = 0;
  c.head_dim = 0;
  c.mla = {
      .q_lora_rank = 6, .kv_lora_rank = 5, .qk_nope_head_dim = 4, .qk_rope_head_dim = 2, .v_head_dim = 4};
  c.tied = false;
  c.mtp = 2;
  return resolved(c);
}

ModelConfig tied_depth() {
  ModelConfig c = {.vocabulary = 23, .layers = 4, .width = 16, .heads = 4, .context = 12, .mlp_width = 8};
  c.init_std = 0.3;
  c.dropout = 0.1;
  c.norm = NormKind::layernorm;
  c.positions = Positions::learned;
  c.mtp = 1;
  return resolved(c);
}

// The gradient of the keys' biases is rounding.
ModelConfig with_biases() {
  ModelConfig c = tied_depth();
  c.bias = true;
  c.mlp = MlpKind::gelu;
  c.dropout = 0;
  c.mtp = 0;
  return c;
}

struct Model {
  const char* name;
  ModelConfig config;
};

// Some stages of pp share their experts with others.
const Layout kLayouts[] = {{.dp = 4, .ep = 4},
                           {.tp = 4, .etp = 2},
                           {.dp = 2, .tp = 2, .ep = 2, .etp = 2},
                           {.cp = 4, .ep = 2},
                           {.cp = 2, .tp = 2, .ep = 4},
                           {.dp = 2, .cp = 2, .tp = 2, .ep = 8},
                           {.pp = 2, .dp = 2, .ep = 2},
                           {.pp = 2, .cp = 2, .tp = 2, .etp = 2},
                           {.pp = 4}};

const Layout kDenseLayouts[] = {{.dp = 4},          {.tp = 4},          {.cp = 4},
                                {.pp = 2, .dp = 2}, {.pp = 2, .tp = 2}, {.pp = 4}};

class VerifyModels : public ::testing::TestWithParam<std::tuple<Model, Layout>> {};

TEST_P(VerifyModels, EqualOneRank) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const auto& [model, layout] = GetParam();
  const bool dense = model.config.mlp != MlpKind::moe;
  const std::span<const Layout> layouts = dense ? std::span<const Layout>(kDenseLayouts) : kLayouts;
  // The pairs meet over all layouts together: each test runs its layout's share of the cases.
  std::vector<VerifyCase> cases =
      verify_cases(model.config, {layouts.begin(), layouts.end()}, Coverage::pairs);
  std::erase_if(cases, [&](const VerifyCase& c) { return c.layout.text() != layout.text(); });
  const auto check = [](const VerifyRow& row) {
    EXPECT_TRUE(row.pass) << row.run.layout.text() << " " << row.run.schedule << " zero "
                          << static_cast<int>(row.run.zero) << ": " << row.error << ", gradient of "
                          << row.worst_tensor << " " << row.max_rel_grad_err << ", weights "
                          << row.weights_err;
  };
  ASSERT_FALSE(cases.empty());
  EXPECT_EQ(verify({.model = model.config, .seed = seed}, cases, check).size(), cases.size());
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<Model, Layout>>& info) {
  const auto& [model, layout] = info.param;
  std::string name = format("{}_{}", model.name, layout.text());
  std::erase(name, '=');
  std::ranges::replace(name, ',', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Experts, VerifyModels,
                         ::testing::Combine(::testing::Values(Model{"softmax", every_option(Scores::softmax)},
                                                              Model{"sigmoid", every_option(Scores::sigmoid)},
                                                              Model{"mtp", two_depths()}),
                                            ::testing::ValuesIn(kLayouts)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Dense, VerifyModels,
                         ::testing::Combine(::testing::Values(Model{"tied_mtp", tied_depth()},
                                                              Model{"biases", with_biases()}),
                                            ::testing::ValuesIn(kDenseLayouts)),
                         name_of);

}  // namespace
}  // namespace phalanx
