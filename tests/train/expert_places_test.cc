// Training whose experts change places beside training whose do not: losses, gradient norms and in the end
// the weights, equal to the bit.
#include "phalanx/train/expert_places.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "phalanx/base/error.h"
#include "phalanx/comm/gather_numbers.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/rank_run.h"
#include "phalanx/train/resume.h"
#include "tests/train/small_runs.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Case {
  const char* name;
  TrainConfig (*config)(const Layout&, const char*);
  Layout layout;
  const char* schedule = "sequential";
  KeptWeights weights = KeptWeights::same;
  int64_t moves = 0;
  OptimizerConfig::Master master = OptimizerConfig::Master::same;
};

TrainConfig with_exact_sums(const Case& c) {
  TrainConfig config = c.config(c.layout, c.schedule);
  config.model.moe.experts = 8;
  config.model.moe.exact_sums = true;
  config.model.moe.bias_rate = 0.05;  // so that loads change
  config.train.weights = c.weights;
  config.optimizer.master = c.master;
  config.clip = 0.5;
  config.lr.lr = 0.02;
  return checked(config);
}

struct Seen {
  std::vector<double> losses;  // and gradient norms
  std::vector<Tensor> values;  // of this rank, by parameter, experts at home
  int64_t moved = 0;
};

constexpr int kSteps = 10;

Seen train(const TrainConfig& config, const Dataset& data, Group& world) {
  RankRun rank(config, data.tokenizer().vocabulary(), world);
  Seen seen;
  for (int step = 0; step < kSteps; ++step) {
    const auto batches = data.train_batches(step, rank.share());
    const StepResult r = train_step(rank.trainer(), batches, 0.02, static_cast<uint64_t>(step));
    seen.losses.push_back(r.loss);
    seen.losses.push_back(r.grad_norm);
  }
  seen.losses.push_back(evaluate(rank.trainer(), data.train_batches(kSteps, rank.share())));
  seen.moved = rank.places().moved();
  rank.places().at_home([&] {
    for (const Parameter& p : rank.parameters().all()) {
      const Tensor value = rank.parameters().own_value(p);
      seen.values.push_back(Tensor::empty(value.shape(), value.dtype()));
      std::memcpy(seen.values.back().raw(), value.raw(), value.bytes());
    }
  });
  return seen;
}

class ExpertPlacesTest : public testing::TestWithParam<Case> {};

TEST_P(ExpertPlacesTest, NoResultChangesByABit) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const TrainConfig still = with_exact_sums(GetParam());
  TrainConfig moving = still;
  moving.parallel.rebalance_every = 2;
  moving.parallel.rebalance_window = 3;
  moving.parallel.rebalance_moves = GetParam().moves;
  moving = checked(moving);
  const Dataset data = random_text(still, seed);
  run_thread_ranks({.ranks = still.parallel.ranks}, [&](Group& world) {
    const Seen a = train(still, data, world);
    const Seen b = train(moving, data, world);
    EXPECT_EQ(a.moved, 0);
    EXPECT_GE(reduce_number(world, b.moved), 2);
    ASSERT_EQ(a.losses.size(), b.losses.size());
    for (size_t i = 0; i < a.losses.size(); ++i) EXPECT_EQ(a.losses[i], b.losses[i]) << "number " << i;
    ASSERT_EQ(a.values.size(), b.values.size());
    for (size_t i = 0; i < a.values.size(); ++i) {
      EXPECT_EQ(std::memcmp(a.values[i].raw(), b.values[i].raw(), a.values[i].bytes()), 0)
          << "parameter " << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, ExpertPlacesTest,
    testing::Values(
        Case{"ep2", small_moe, {.dp = 2, .ep = 2}},
        Case{"ep4_overlapped", small_moe, {.dp = 4, .ep = 4}, "overlapped"},
        Case{"ep2_edp2_few_moves", small_moe, {.dp = 4, .ep = 2}, "sequential", KeptWeights::same, 4},
        Case{"tp2_ep2_etp2", small_moe, {.dp = 2, .tp = 2, .ep = 2, .etp = 2}},
        Case{"pp2_ep2", small_moe, {.pp = 2, .dp = 2, .ep = 2}, "zb-h1"},
        Case{"dualpipe_tp2_ep2", small_moe, {.pp = 2, .tp = 2, .ep = 2}, "dualpipe"},
        Case{"narrow", small_moe, {.dp = 2, .ep = 2}, "sequential", KeptWeights::bf16},
        Case{"no_master",
             small_moe,
             {.dp = 2, .ep = 2},
             "sequential",
             KeptWeights::bf16,
             0,
             OptimizerConfig::Master::none},
        Case{"mtp_ep2", small_mtp, {.dp = 2, .ep = 2}}),
    [](const auto& info) { return info.param.name; });

// A checkpoint in the middle has every expert under its own number, and the run goes on from it to the same
// bits on another layout's worth of places.
TEST(ExpertPlaces, SurviveACheckpoint) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  TrainConfig config = with_exact_sums({"", small_moe, {.dp = 2, .ep = 2}});
  config.parallel.rebalance_every = 2;
  const auto out = std::filesystem::temp_directory_path() / ("expert_places_" + std::to_string(seed));
  config.train.out = out.string();
  const Dataset data = random_text(config, seed);
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    const auto steps = [&](RankRun& rank, int begin, int end) {
      std::vector<double> losses;
      for (int step = begin; step < end; ++step) {
        const auto batches = data.train_batches(step, rank.share());
        losses.push_back(train_step(rank.trainer(), batches, 0.02, static_cast<uint64_t>(step)).loss);
      }
      return losses;
    };
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    steps(rank, 0, 5);
    EXPECT_GE(rank.places().moved(), 1);
    const SavedReport saved = save_run(rank, data.tokenizer(), 5, world);
    const std::vector<double> went_on = steps(rank, 5, 9);
    TrainConfig still = config;
    still.parallel.rebalance_every = 0;
    RankRun resumed(still, data.tokenizer().vocabulary(), world);
    resume_run(resumed, data.tokenizer(), saved.path.string(), world);
    EXPECT_EQ(steps(resumed, 5, 9), went_on);
  });
  std::filesystem::remove_all(out);
}

TEST(ExpertPlaces, RefuseWhatWouldChangeResults) {
  const auto with = [](auto change) {
    return [=] {
      TrainConfig config = with_exact_sums({"", small_moe, {.dp = 2, .ep = 2}});
      config.parallel.rebalance_every = 2;
      change(config);
      checked(config);
    };
  };
  EXPECT_THAT(with([](TrainConfig& c) { c.model.moe.two_level = true; }),
              ThrowsMessage<Error>(HasSubstr("moe.two_level = false")));
  EXPECT_THAT(with([](TrainConfig& c) { c.model.moe.exact_sums = false; }),
              ThrowsMessage<Error>(HasSubstr("moe.exact_sums = true")));
  EXPECT_THAT(with([](TrainConfig& c) { c.parallel.zero = 1; }),
              ThrowsMessage<Error>(HasSubstr("parallel.zero = 0")));
  EXPECT_THAT(with([](TrainConfig& c) { c.model.moe.share_layers = 2; }),
              ThrowsMessage<Error>(HasSubstr("moe.share_layers = 1")));
  EXPECT_THAT(with([](TrainConfig& c) {
                c.model.mlp = MlpKind::swiglu;
                c.parallel.layout = "dp=2";
              }),
              ThrowsMessage<Error>(HasSubstr("model.mlp")));
}

}  // namespace
}  // namespace phalanx
