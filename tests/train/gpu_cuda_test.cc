// Training on a GPU: the same steps as on the CPU, compared parameter by parameter.
#include <cmath>
#include <map>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ops/cast.h"
#include "phalanx/train/rank_run.h"
#include "tests/cuda_test.h"
#include "tests/temporary_directory.h"
#include "tests/train/small_runs.h"

namespace phalanx::test {
namespace {

using Vectors = std::map<std::string, std::vector<double>>;

struct Outcome {
  StepResult first;
  std::vector<double> losses;
  Vectors grads;    // of the first step
  Vectors weights;  // after all
};

Vectors values_of(RankRun& rank, bool grads) {
  Vectors all;
  for (const Parameter& p : rank.parameters().all()) {
    Tensor own = (grads ? rank.parameters().own_grad(p) : rank.parameters().own_value(p)).to(kCpu);
    if (own.dtype() == DType::bf16) {
      const Tensor wide = Tensor::empty(own.shape(), DType::f32);
      widen_into(wide, std::exchange(own, wide));
    }
    visit_float(own.dtype(), [&](auto t) {
      const auto values = own.span<decltype(t)>();
      all[p.name()].assign(values.begin(), values.end());
    });
  }
  return all;
}

Outcome train_on(Device::Kind device, TrainConfig config, const Dataset& data) {
  config.train.device = device;
  Outcome out;
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    for (int64_t s = 0; s < 3; ++s) {
      const std::vector<Batch> batches = data.train_batches(s, rank.share());
      if (s == 0) {
        out.first = compute_gradients(rank.trainer(), batches, 0);
        out.grads = values_of(rank, true);
      }
      const StepResult step = train_step(rank.trainer(), batches, 1e-3, static_cast<uint64_t>(s));
      out.losses.push_back(step.loss);
    }
    out.weights = values_of(rank, false);
  });
  return out;
}

double norm(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

// Softmax does not see a bias of keys: its gradient is 0 but for rounding, which AdamW makes steps of.
bool is_rounding(const std::string& name) { return name.ends_with(".attention.k.b"); }

struct Error {
  double value = 0;
  std::string tensor;
};

// ‖got − want‖ / max(‖want‖, 1e-6 · ‖all want‖), of the worst tensor; where all is rounding, / ‖all want‖.
Error worst_of(const Vectors& got, const Vectors& want) {
  double all = 0;
  for (const auto& [name, w] : want) all += norm(w) * norm(w);
  Error worst;
  for (const auto& [name, w] : want) {
    const std::vector<double>& g = got.at(name);
    std::vector<double> error(w.size());
    for (size_t i = 0; i < w.size(); ++i) error[i] = g[i] - w[i];
    const double floor = (is_rounding(name) ? 1 : 1e-6) * std::sqrt(all);
    const double relative = norm(error) / std::max(norm(w), floor);
    if (relative > worst.value) worst = {relative, name};
  }
  return worst;
}

void expect_close(const Vectors& got, const Vectors& want, double tolerance) {
  const Error worst = worst_of(got, want);
  EXPECT_LT(worst.value, tolerance) << worst.tensor;
}

struct Case {
  const char* name;
  TrainConfig (*config)(const Layout&, const char*);
  double of_bf16 = 2e-2;  // what rounding to bf16 may make of gradients; of norms of 20 columns more
};

class TrainOnGpu : public CudaTest, public ::testing::WithParamInterface<Case> {};

TEST_P(TrainOnGpu, EqualsTheCpu) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  TrainConfig config = GetParam().config({}, "sequential");
  const Dataset data = random_text(config, seed);
  for (const DType dtype : {DType::f64, DType::f32}) {
    SCOPED_TRACE(dtype_name(dtype));
    config.train.dtype = dtype;
    const Outcome want = train_on(Device::Kind::cpu, config, data);
    const Outcome got = train_on(Device::Kind::cuda, config, data);
    const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-5;
    EXPECT_NEAR(got.first.loss, want.first.loss, tolerance * want.first.loss);
    EXPECT_NEAR(got.first.grad_norm, want.first.grad_norm, tolerance * want.first.grad_norm);
    expect_close(got.grads, want.grads, tolerance);
    if (dtype == DType::f64) {  // AdamW steps by a gradient's sign, which rounding may change near 0
      expect_close(got.weights, want.weights, 1e-9);
      for (size_t s = 0; s < want.losses.size(); ++s) EXPECT_NEAR(got.losses[s], want.losses[s], 1e-9);
    }
  }
}

// Weights kept in bf16: a GPU computes in bf16, too. Beside the CPU in f64, from weights rounded alike, all
// that differs is rounding.
TEST_P(TrainOnGpu, InBf16IsNearF64) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  TrainConfig config = GetParam().config({}, "sequential");
  const Dataset data = random_text(config, seed);
  config.train.weights = KeptWeights::bf16;
  config.model.moe.top_k = config.model.moe.experts;  // rounding may not change the choice
  for (const auto master : {OptimizerConfig::Master::same, OptimizerConfig::Master::none}) {
    config.optimizer.master = master;
    const Outcome want = train_on(Device::Kind::cpu, config, data);
    const Outcome got = train_on(Device::Kind::cuda, config, data);
    EXPECT_NEAR(got.first.loss, want.first.loss, 2e-3 * want.first.loss);
    expect_close(got.grads, want.grads, GetParam().of_bf16);
    for (size_t s = 0; s < want.losses.size(); ++s) {
      EXPECT_NEAR(got.losses[s], want.losses[s], 5e-3 * want.losses[s]);
    }
  }
}

// A step on the GPU is the same twice, to the bit.
TEST_P(TrainOnGpu, IsDeterministic) {
  TrainConfig config = GetParam().config({}, "sequential");
  const Dataset data = random_text(config, std::random_device{}());
  config.train.weights = KeptWeights::bf16;
  for (const auto master : {OptimizerConfig::Master::same, OptimizerConfig::Master::none}) {
    config.optimizer.master = master;
    const Outcome once = train_on(Device::Kind::cuda, config, data);
    const Outcome again = train_on(Device::Kind::cuda, config, data);
    EXPECT_EQ(once.losses, again.losses);
    EXPECT_EQ(once.grads, again.grads);
    EXPECT_EQ(once.weights, again.weights);
  }
}

// The host updates what the GPU would, to the bit: both fuse multiplications with additions.
TEST_P(TrainOnGpu, StateOnTheHostChangesNoBit) {
  const testing::TemporaryDirectory dir;
  TrainConfig config = GetParam().config({}, "sequential");
  const Dataset data = random_text(config, std::random_device{}());
  using Master = OptimizerConfig::Master;
  for (const auto& [weights, gradients, master] :
       {std::tuple{KeptWeights::same, KeptWeights::same, Master::same},
        {KeptWeights::bf16, KeptWeights::same, Master::same},
        {KeptWeights::bf16, KeptWeights::bf16, Master::same},
        {KeptWeights::bf16, KeptWeights::bf16, Master::none}}) {
    config.train.weights = weights;
    config.train.gradients = gradients;
    config.optimizer.master = master;
    config.optimizer.offload = "";
    const Outcome on_gpu = train_on(Device::Kind::cuda, config, data);
    config.optimizer.offload = dir.path().string();
    const Outcome on_host = train_on(Device::Kind::cuda, config, data);
    EXPECT_EQ(on_gpu.losses, on_host.losses);
    EXPECT_EQ(on_gpu.weights, on_host.weights);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TrainOnGpu,
                         ::testing::Values(Case{"gpt", small_gpt}, Case{"llama", small_llama},
                                           Case{"moe", small_moe}, Case{"mla", small_mla_of_gpus, 6e-2}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace phalanx::test
