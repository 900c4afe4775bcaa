// The memory that a step on a GPU is said to take, beside what it took there (docs/benchmarks.md): no GPU is
// needed to ask.
#include <gtest/gtest.h>

#include "phalanx/base/error.h"
#include "phalanx/train/memory.h"

namespace phalanx {
namespace {

constexpr double kGib = 1 << 30;

TrainConfig on_gpu(const ModelConfig& model, int64_t sequences) {
  TrainConfig config;
  config.model = model;
  config.train.device = Device::Kind::cuda;
  config.train.weights = KeptWeights::bf16;
  config.train.batch = sequences;
  return checked(config);
}

TrainConfig gpt2() {
  ModelConfig m;
  m.layers = 12;
  m.width = 768;
  m.heads = 12;
  m.context = 1024;
  m.mlp = MlpKind::gelu_tanh;
  return on_gpu(m, 64);
}

TrainConfig llama(int layers, int64_t width, int heads, int64_t sequences) {
  ModelConfig m;
  m.layers = layers;
  m.width = width;
  m.heads = heads;
  m.kv_heads = 8;
  m.context = 4096;
  m.norm = NormKind::rmsnorm;
  m.positions = Positions::rope;
  m.mlp = MlpKind::swiglu;
  m.mlp_width = 8192;
  m.bias = false;
  return on_gpu(m, sequences);
}

TrainConfig mixture(ModelConfig m, int64_t sequences) {
  m.heads = 16;
  m.norm = NormKind::rmsnorm;
  m.positions = Positions::rope;
  m.mlp = MlpKind::moe;
  m.bias = false;
  return on_gpu(m, sequences);
}

TrainConfig moe_a() {
  ModelConfig m = {.layers = 12, .width = 1024, .context = 2048};
  m.moe = {.experts = 16, .top_k = 2, .expert_width = 1408, .shared_experts = 1};
  return mixture(m, 8);
}

TrainConfig moe_b() {
  ModelConfig m = {.layers = 8, .width = 2048, .context = 4096};
  m.moe = {.experts = 64, .top_k = 6, .expert_width = 1024, .shared_experts = 2};
  return mixture(m, 2);
}

double account_gib(const TrainConfig& config, int64_t vocabulary) {
  return static_cast<double>(memory_account(config, vocabulary).total()) / kGib;
}

double narrow_gib(TrainConfig config, int64_t vocabulary) {
  config.train.gradients = KeptWeights::bf16;
  return account_gib(config, vocabulary);
}

// Peaks of blocks in use, of one run of each on an H100.
TEST(GpuMemory, TheAccountIsNearTheMeasuredPeak) {
  EXPECT_NEAR(narrow_gib(gpt2(), 50304) / 21.0, 1, 0.1);
  EXPECT_NEAR(narrow_gib(llama(16, 2048, 32, 4), 128256) / 36.4, 1, 0.1);
  EXPECT_NEAR(narrow_gib(llama(28, 3072, 24, 1), 128256) / 53.4, 1, 0.1);
  EXPECT_NEAR(narrow_gib(moe_a(), 50304) / 21.0, 1, 0.1);
  EXPECT_NEAR(narrow_gib(moe_b(), 50304) / 54.2, 1, 0.1);
}

TEST(GpuMemory, NarrowGradientsTakeHalf) {
  TrainConfig config = llama(16, 2048, 32, 4);
  const int64_t wide = memory_account(config, 128256).gradients;
  config.train.gradients = KeptWeights::bf16;
  EXPECT_NEAR(static_cast<double>(memory_account(config, 128256).gradients) / static_cast<double>(wide), 0.5,
              0.01);
}

TEST(GpuMemory, ProductsInFp8NeedALayersWeightsOnceMore) {
  TrainConfig config = llama(16, 2048, 32, 4);
  const int64_t without = memory_account(config, 128256).working;
  config.train.products = Products::fp8;
  // q and o, k and v, gate, up and down, two norms.
  const int64_t elements = 2048 * (2 * 2048 + 2 * 512 + 3 * 8192 + 2);
  const int64_t more = memory_account(config, 128256).working - without;
  EXPECT_GE(more, elements);
  EXPECT_LE(more, elements * 5 / 4);  // as blocks are rounded up
}

std::string refusal(const TrainConfig& config, double gib, const std::vector<int>& pp_ranks = {0}) {
  try {
    check_gpu_memory(config, 50304, pp_ranks, static_cast<uint64_t>(gib * kGib));
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(GpuMemory, WhatDoesNotFitIsRefusedWithWhatDoes) {
  const TrainConfig config = gpt2();
  EXPECT_EQ(refusal(config, 80), "");
  const std::string less = refusal(config, 16);
  EXPECT_NE(less.find("which has 16"), std::string::npos) << less;
  EXPECT_NE(less.find("it fits with train.microbatch=32"), std::string::npos) << less;
  const std::string least = refusal(config, 2);
  EXPECT_NE(least.find("smaller model.width"), std::string::npos) << least;
}

TEST(GpuMemory, RanksThatShareAGpuFitTogether) {
  TrainConfig config = gpt2();
  config.parallel = {.ranks = 2, .layout = "pp=2"};
  config.train.microbatch = 8;
  config.train.schedule = "";
  config = checked(config);
  const double first = static_cast<double>(memory_account(config, 50304, 0).total()) / kGib;
  const double last = static_cast<double>(memory_account(config, 50304, 1).total()) / kGib;
  EXPECT_EQ(refusal(config, first + last + 1.1, {0, 1}), "");
  const std::string told = refusal(config, first + last + 0.9, {0, 1});
  EXPECT_NE(told.find("a step of the 2 ranks that share it needs about"), std::string::npos) << told;
  EXPECT_EQ(refusal(config, std::max(first, last) + 1.1, {1}), "");
}

}  // namespace
}  // namespace phalanx
