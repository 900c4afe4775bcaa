// Training with linear layers in FP8: beside the same in f32, and every layout beside one rank.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/rank_run.h"
#include "tests/train/fp8_runs.h"

namespace phalanx {
namespace {

class Fp8Layouts : public testing::TestWithParam<Fp8Model> {};

// What is quantised is the same rows and the same blocks on every layout; groups of tokens, and sums before
// they are quantised, differ a little.
TEST_P(Fp8Layouts, EqualOneRank) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  verify(fp8_options(GetParam(), seed), fp8_cases(GetParam()), [](const VerifyRow& row) {
    EXPECT_TRUE(row.pass) << row.run.layout.text() << " " << row.run.schedule << ": " << row.error << " "
                          << row.worst_tensor << " " << row.max_rel_grad_err << " loss " << row.loss_err
                          << " weights " << row.weights_err;
  });
}

INSTANTIATE_TEST_SUITE_P(Models, Fp8Layouts, testing::Values(Fp8Model::llama, Fp8Model::mla, Fp8Model::moe),
                         [](const auto& info) { return fp8_name(info.param); });

struct Trained {
  std::map<std::string, std::vector<float>> grads;
  std::vector<double> losses;
};

Trained train_with(TrainConfig config, const Dataset& data, Products products, int steps) {
  config.train.products = products;
  Trained out;
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    compute_gradients(rank.trainer(), data.train_batches(0, rank.share()), 0);
    for (const Parameter& p : rank.parameters().all()) {
      const auto own = rank.parameters().own_grad(p).span<float>();
      out.grads[p.name()].assign(own.begin(), own.end());
    }
    for (int64_t s = 0; s < steps; ++s) {
      const auto batches = data.train_batches(s % 2, rank.share());
      out.losses.push_back(train_step(rank.trainer(), batches, 1e-3, static_cast<uint64_t>(s)).loss);
    }
  });
  return out;
}

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(a[i] - b[i], 2);
    norm += std::pow(b[i], 2);
  }
  return std::sqrt(error / norm);
}

// Values of three bits behind the first, so each is off by 2.6 % (in root mean square) or less: of a product
// two factors are, on the way back more products are behind each other.
TEST(Fp8Training, IsNearF32) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const auto model : {small_gpt, small_llama}) {
    TrainConfig config = model({}, "sequential");
    config.model = fp8_options(Fp8Model::llama, 0).model;
    const TrainConfig of = model({}, "sequential");
    config.model.mlp = of.model.mlp;
    config.model.bias = of.model.bias;
    config.model.norm = of.model.norm;
    config.model.positions = of.model.positions;
    config.model.context = 32;
    const Dataset data = random_text(config, seed);
    constexpr int kSteps = 7;  // the last on the first one's batch
    const Trained want = train_with(config, data, Products::same, kSteps);
    const Trained got = train_with(config, data, Products::fp8, kSteps);
    const bool softmax_sees_k = config.model.positions == Positions::rope;
    for (const auto& [name, grads] : want.grads) {
      if (!softmax_sees_k && name.ends_with("attention.k.b")) continue;  // rounding alone
      const double error = relative(got.grads.at(name), grads);
      EXPECT_LT(error, 0.12) << name;
      EXPECT_GT(error, 1e-5) << name << " is not in FP8";
    }
    EXPECT_LT(got.losses.back(), 0.99 * got.losses.front());
    for (int s = 0; s < kSteps; ++s) {
      const auto step = static_cast<size_t>(s);
      EXPECT_NEAR(got.losses[step], want.losses[step], 1e-2 * want.losses[step]) << s;
    }
  }
}

TEST(Fp8Training, RefusesFeaturesThatItCannotCut) {
  VerifyOptions options = fp8_options(Fp8Model::llama, 1);
  options.model.mlp_width = 128;
  const std::vector<VerifyRow> rows = verify(options, {{.layout = {.tp = 2}}}, [](const VerifyRow&) {});
  EXPECT_NE(rows.at(0).error.find("of a multiple of 128, not 64"), std::string::npos) << rows.at(0).error;
}

}  // namespace
}  // namespace phalanx
