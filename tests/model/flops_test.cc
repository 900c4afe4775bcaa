// Parameter counts that others have published, and operations counted by hand.
#include "phalanx/model/flops.h"

#include <gtest/gtest.h>

#include "phalanx/comm/transport/threads.h"
#include "tests/model/tiny_model.h"

namespace phalanx {
namespace {

ModelConfig gpt2_small() {
  return resolved({.vocabulary = 50257,
                   .layers = 12,
                   .width = 768,
                   .heads = 12,
                   .context = 1024,
                   .norm = NormKind::layernorm,
                   .positions = Positions::learned,
                   .mlp = MlpKind::gelu_tanh,
                   .bias = true});
}

ModelConfig llama2_7b() {
  return resolved({.vocabulary = 32000,
                   .layers = 32,
                   .width = 4096,
                   .heads = 32,
                   .context = 4096,
                   .mlp_width = 11008,
                   .tied = false});
}

ModelConfig mixtral_8x7b() {
  return resolved({.vocabulary = 32000,
                   .layers = 32,
                   .width = 4096,
                   .heads = 32,
                   .kv_heads = 8,
                   .context = 32768,
                   .mlp = MlpKind::moe,
                   .tied = false,
                   .moe = {.experts = 8, .top_k = 2, .expert_width = 14336}});
}

ModelConfig deepseek_v3() {
  return resolved(
      {.vocabulary = 129280,
       .layers = 61,
       .width = 7168,
       .heads = 128,
       .context = 4096,
       .mlp = MlpKind::moe,
       .mlp_width = 18432,
       .tied = false,
       .moe = {.experts = 256, .top_k = 8, .expert_width = 2048, .shared_experts = 1, .dense_layers = 3},
       .attention = AttentionKind::mla,
       .mla = {.q_lora_rank = 1536,
               .kv_lora_rank = 512,
               .qk_nope_head_dim = 128,
               .qk_rope_head_dim = 64,
               .v_head_dim = 128}});
}

TEST(Flops, ParametersAreThoseThatAreKnown) {
  // 671 B in all and 37 B in use, as the paper says: without the table of tokens, which nothing multiplies.
  EXPECT_EQ(count_parameters(deepseek_v3()).total, 671'026'404'352);
  EXPECT_NEAR(static_cast<double>(count_parameters(deepseek_v3()).active - 129280 * 7168), 36.6e9, 0.05e9);
  // "14B of the Multi-Token Prediction (MTP) Module weights" (its README), with copies of both tables.
  ModelConfig with_mtp = deepseek_v3();
  with_mtp.mtp = 1;
  const int64_t mtp = count_parameters(with_mtp).total - count_parameters(deepseek_v3()).total;
  EXPECT_NEAR(static_cast<double>(mtp + 2 * int64_t{129280} * 7168), 13.5e9, 0.5e9);
  EXPECT_EQ(count_parameters(gpt2_small()).total, 124'439'808);
  EXPECT_EQ(count_parameters(gpt2_small()).active, 124'439'808);
  EXPECT_EQ(count_parameters(llama2_7b()).total, 6'738'415'616);
  EXPECT_EQ(count_parameters(mixtral_8x7b()).total, 46'702'792'704);
  // Six of eight experts, three matrices each, in 32 layers stand by.
  EXPECT_EQ(count_parameters(mixtral_8x7b()).active, 46'702'792'704 - 6 * 3 * 32 * int64_t{4096} * 14336);
}

TEST(Flops, OperationsOfATokenByHand) {
  const TokenFlops gpt2 = training_flops_per_token(gpt2_small());
  // A layer: q, k, v, o of 768², up and down of 768 · 3072; then the head.
  EXPECT_DOUBLE_EQ(gpt2.products, 6.0 * (12 * (4.0 * 768 * 768 + 2.0 * 768 * 3072) + 50257.0 * 768));
  EXPECT_DOUBLE_EQ(gpt2.attention, 12.0 * 12 * 768 * 1024);
  EXPECT_DOUBLE_EQ(gpt2.total(), gpt2.products + gpt2.attention);
  EXPECT_DOUBLE_EQ(training_flops_per_token(deepseek_v3()).attention, 6.0 * 61 * 128 * (192 + 128) * 4096);
  ModelConfig ahead = gpt2_small();
  ahead.mtp = 2;  // each a layer, two matrices of 768² before it, and the head again
  const TokenFlops mtp = training_flops_per_token(ahead);
  EXPECT_DOUBLE_EQ(mtp.products - gpt2.products,
                   6.0 * 2 * (4.0 * 768 * 768 + 2.0 * 768 * 3072 + 2.0 * 768 * 768 + 50257.0 * 768));
  EXPECT_DOUBLE_EQ(mtp.attention, gpt2.attention * 14 / 12);
  const TokenFlops mixtral = training_flops_per_token(mixtral_8x7b());
  // A layer: q and o of 4096², k and v to 8 heads of 128, the router, two experts of three matrices.
  const double layer = 2.0 * 4096 * 4096 + 2.0 * 4096 * 1024 + 4096.0 * 8 + 2 * 3.0 * 4096 * 14336;
  EXPECT_DOUBLE_EQ(mixtral.products, 6 * (32 * layer + 32000.0 * 4096));
  EXPECT_DOUBLE_EQ(mixtral.attention, 12.0 * 32 * 4096 * 32768);
}

// The model itself is the count, whatever its options.
TEST(Flops, ParametersAreThoseOfTheModel) {
  run_thread_ranks({.ranks = 1}, [](Group& world) {
    for (int options = 0; options < 2048; ++options) {
      const auto has = [&](int bit) { return (options >> bit & 1) != 0; };
      ModelConfig c = {.vocabulary = 17, .layers = 3, .width = 12, .heads = 3, .context = 5, .mlp_width = 7};
      c.norm = has(0) ? NormKind::layernorm : NormKind::rmsnorm;
      c.positions = has(1) ? Positions::learned : Positions::rope;
      c.bias = has(2);
      c.tied = has(3);
      c.kv_heads = has(4) ? 1 : 0;
      c.mlp = has(5) ? MlpKind::moe : has(6) ? MlpKind::swiglu : MlpKind::gelu;
      c.moe = {.experts = 4,
               .top_k = 2,
               .expert_width = 6,
               .shared_experts = has(6) ? 2 : 0,
               .dense_layers = has(7) ? 1 : 0,
               .share_layers = has(0) ? 2 : 1};
      if (has(8)) {
        c.attention = AttentionKind::mla;
        c.positions = Positions::rope;
        c.bias = false;
        c.kv_heads = 0;
        c.mla = {.q_lora_rank = has(9) ? 5 : 0, .kv_lora_rank = 7, .qk_nope_head_dim = 3, .v_head_dim = 5};
      }
      c.mtp = has(10) ? 2 : 0;
      const testing::TinyModel model(world, {}, c, 1);
      EXPECT_EQ(count_parameters(resolved(c)).total, model.store.share_elements()) << "options " << options;
    }
  });
}

// Nor does it matter how ranks share them out.
TEST(Flops, LocalParametersAreThoseOfARank) {
  ModelConfig c = {.vocabulary = 16, .layers = 3, .width = 16, .heads = 4, .context = 5, .mlp_width = 8};
  c.mlp = MlpKind::moe;
  c.moe = {.experts = 4, .expert_width = 6, .shared_experts = 2, .dense_layers = 1};
  c.mtp = 1;
  for (const Layout& layout : {Layout{.tp = 2}, Layout{.dp = 4, .ep = 4}, Layout{.dp = 2, .tp = 2, .ep = 2},
                               Layout{.dp = 2, .etp = 2}, Layout{.dp = 3, .tp = 2, .ep = 2, .etp = 3}}) {
    run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
      const testing::TinyModel model(world, layout, c, 1);
      EXPECT_EQ(count_local_parameters(resolved(c), layout), model.store.values().numel()) << layout.text();
    });
  }
}

}  // namespace
}  // namespace phalanx
