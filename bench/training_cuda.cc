// Training steps on one GPU, whole (forward, backward, AdamW), on random tokens and without clipping: what
// bench/peers' gpu_training_torch.py runs with PyTorch. Arguments: models (all), --steps N, --microbatch N,
// --bf16-gradients, --moments bf16, --no-master (weights rounded stochastically), --fp8 (linear layers),
// --fast (not deterministic), --update-apart (AdamW not beside forward), --json FILE.
#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>

#include "bench/models.h"
#include "bench/report.h"
#include "phalanx/base/error.h"
#include "phalanx/base/median.h"
#include "phalanx/base/philox.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/flops.h"
#include "phalanx/tensor/stream.h"
#include "phalanx/train/rank_run.h"

namespace phalanx::bench {
namespace {

constexpr double kPeak = 989e12;  // bf16 operations a second of an H100, as its data sheet has it

struct Case {
  const char* name;
  int64_t sequences;  // of a step
  ModelConfig model;
};

ModelConfig gpt2() {
  ModelConfig m;
  m.layers = 12;
  m.width = 768;
  m.heads = 12;
  m.context = 1024;
  m.vocabulary = 50304;
  m.norm = NormKind::layernorm;
  m.positions = Positions::learned;
  m.mlp = MlpKind::gelu_tanh;
  m.bias = true;
  m.tied = true;
  return m;
}

ModelConfig mixture(int layers, int64_t width, int64_t context, const MoeConfig& moe) {
  ModelConfig m;
  m.layers = layers;
  m.width = width;
  m.heads = 16;
  m.context = context;
  m.vocabulary = 50304;
  m.mlp = MlpKind::moe;
  m.moe = moe;
  m.tied = true;
  return m;
}

constexpr MoeConfig kMoeA = {.experts = 16, .top_k = 2, .expert_width = 1408, .shared_experts = 1};
constexpr MoeConfig kMoeB = {.experts = 64, .top_k = 6, .expert_width = 1024, .shared_experts = 2};

std::vector<Case> cases() {
  return {{"gpt2", 64, gpt2()},
          {"llama-1b", 4, llama(16, 2048, 32)},
          {"llama-3b", 1, llama(28, 3072, 24)},
          {"moe-a", 8, mixture(12, 1024, 2048, kMoeA)},
          {"moe-b", 2, mixture(8, 2048, 4096, kMoeB)}};
}

Batch random_batch(int64_t sequences, const ModelConfig& m) {
  const int64_t rows = sequences * m.context;
  const RandomStream stream(1, "bench.tokens");
  Batch b = {.tokens = Tensor::empty({rows}, DType::i32),
             .targets = Tensor::empty({rows}, DType::i32),
             .rows = Tensor::empty({rows}, DType::i64)};
  const auto vocabulary = static_cast<uint32_t>(m.vocabulary);
  for (int64_t i = 0; i < rows; ++i) {
    b.tokens.data<int32_t>()[i] = static_cast<int32_t>(stream.bits(static_cast<uint64_t>(i)) % vocabulary);
    b.targets.data<int32_t>()[i] =
        static_cast<int32_t>(stream.bits(static_cast<uint64_t>(i + rows)) % vocabulary);
    b.rows.data<int64_t>()[i] = i;
  }
  std::vector<int64_t> starts;
  for (int64_t s = 0; s < sequences; ++s) starts.push_back(s * m.context);
  set_sequences(b, starts);
  return b;
}

struct Arguments {
  std::vector<std::string> models;
  int steps = 10;
  int64_t microbatch = 0;
  KeptWeights gradients = KeptWeights::same;
  Products products = Products::same;
  OptimizerConfig::Moments moments = OptimizerConfig::Moments::same;
  OptimizerConfig::Master master = OptimizerConfig::Master::same;
  bool deterministic = true;
  bool overlap = true;
};

void measure(Report& report, const Case& c, const Arguments& a) {
  TrainConfig config;
  config.model = c.model;
  config.train.device = Device::Kind::cuda;
  config.train.weights = KeptWeights::bf16;
  config.train.batch = c.sequences;
  config.train.microbatch = a.microbatch;
  config.train.gradients = a.gradients;
  config.train.products = a.products;
  config.train.deterministic = a.deterministic;
  config.clip = 0;
  config.optimizer.overlap = a.overlap;
  config.optimizer.moments = a.moments;
  config.optimizer.master = a.master;
  config = checked(config);
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    RankRun rank(config, c.model.vocabulary, world);
    std::vector<Batch> batches;
    for (int64_t m = 0; m < rank.share().microbatches(); ++m) {
      batches.push_back(random_batch(rank.share().microbatch, config.model));
    }
    std::vector<double> seconds;
    StepResult result;
    for (int step = -4; step < a.steps; ++step) {
      if (step == 0) current_stream().reset_peak();
      const auto begin = std::chrono::steady_clock::now();
      result = train_step(rank.trainer(), batches, 1e-4, static_cast<uint64_t>(step + 4));
      current_stream().synchronise();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      if (step >= 0) seconds.push_back(took.count());
    }
    const double step_s = median(seconds);
    const double tokens = static_cast<double>(c.sequences * config.model.context);
    const double operations = training_flops_per_token(rank.model().config()).total() * tokens;
    const MemoryStats memory = current_stream().memory();
    report.add({{"model", c.name},
                {"gradients", a.gradients == KeptWeights::bf16 ? "bf16" : "f32"},
                {"products", a.products == Products::fp8 ? "fp8" : "bf16"},
                {"moments", a.moments == OptimizerConfig::Moments::bf16 ? "bf16" : "f32"},
                {"master", a.master == OptimizerConfig::Master::same ? "f32" : "none"},
                {"deterministic", a.deterministic ? "yes" : "no"},
                {"AdamW", a.overlap ? "beside forward" : "apart"},
                {"ms", 1e3 * step_s},
                {"tokens/s", tokens / step_s},
                {"MFU %", 100 * operations / step_s / kPeak},
                {"GiB at most", static_cast<double>(memory.peak) / (1 << 30)},
                {"GiB taken", static_cast<double>(memory.reserved) / (1 << 30)},
                {"loss", result.loss}});
  });
}

Arguments arguments_of(std::span<char*> all) {
  Arguments a;
  for (size_t i = 1; i < all.size(); ++i) {
    const std::string text = all[i];
    if (text == "--fast") {
      a.deterministic = false;
    } else if (text == "--update-apart") {
      a.overlap = false;
    } else if (text == "--fp8") {
      a.products = Products::fp8;
    } else if (text == "--no-master") {
      a.master = OptimizerConfig::Master::none;
    } else if (text == "--bf16-gradients") {
      a.gradients = KeptWeights::bf16;
    } else if (text.starts_with("--") && i + 1 < all.size()) {
      ++i;
      if (text == "--steps") a.steps = std::atoi(all[i]);
      if (text == "--microbatch") a.microbatch = std::atoll(all[i]);
      if (text == "--moments" && all[i] == std::string_view("bf16")) {
        a.moments = OptimizerConfig::Moments::bf16;
      }
    } else {
      a.models.push_back(text);
    }
  }
  return a;
}

int run(std::span<char*> all) {
  cuda_initialise();
  const Arguments a = arguments_of(all);
  Report report("training on one GPU, bf16");
  for (const Case& c : cases()) {
    if (a.models.empty() || std::ranges::find(a.models, c.name) != a.models.end()) measure(report, c, a);
  }
  return report.finish(all);
}

}  // namespace
}  // namespace phalanx::bench

int main(int count, char** arguments) {
  try {
    return phalanx::bench::run(std::span(arguments, static_cast<size_t>(count)));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
