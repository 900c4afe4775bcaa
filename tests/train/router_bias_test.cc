// Loss-free balancing: what the bias becomes in a step, that it evens the load, and what it stays out of.
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/rank_run.h"
#include "tests/train/small_runs.h"

namespace phalanx {
namespace {

constexpr double kRate = 0.01;

TrainConfig biased(const Layout& layout) {
  TrainConfig c = small_moe(layout, "sequential");
  c.train.dtype = DType::f64;
  c.model.init_std = 0.3;  // uneven from the start
  c.model.moe.balance_loss = 0;
  c.model.moe.bias_rate = kRate;
  return c;
}

StepResult step(RankRun& rank, const Dataset& data, int64_t number, double lr) {
  const std::vector<Batch> batches = data.train_batches(number, rank.share());
  return train_step(rank.trainer(), batches, lr, static_cast<uint64_t>(number));
}

// By layer and expert, over all ranks and since the last call.
std::vector<std::vector<int64_t>> take_expert_tokens(RankRun& rank, Group& world) {
  std::vector<std::vector<int64_t>> out;
  for (Moe* moe : rank.model().moe_layers()) {
    std::vector<int64_t>& mine = moe->statistics().expert_tokens;
    const Tensor all = Tensor::of(Shape{std::ssize(mine)}, std::span<const int64_t>(mine));
    world.all_reduce(all).wait();
    out.emplace_back(all.span<int64_t>().begin(), all.span<int64_t>().end());
    std::ranges::fill(mine, 0);
  }
  return out;
}

// The most that an expert of a layer is chosen, over the mean; of the worst layer.
double imbalance(const std::vector<std::vector<int64_t>>& tokens) {
  double worst = 0;
  for (const std::vector<int64_t>& layer : tokens) {
    double sum = 0;
    for (const int64_t n : layer) sum += static_cast<double>(n);
    const auto most = static_cast<double>(*std::ranges::max_element(layer));
    worst = std::max(worst, most * static_cast<double>(layer.size()) / sum);
  }
  return worst;
}

// Over all microbatches and all ranks that route: those of dp, cp and tp.
TEST(RouterBias, MovesByTheSignOfWhatIsMissingToTheMean) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const TrainConfig config = biased({.dp = 2, .cp = 2, .tp = 2, .ep = 4});
  const Dataset data = random_text(config, seed);
  run_thread_ranks({.ranks = 8}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    const std::vector<State>& states = rank.parameters().states();
    ASSERT_EQ(states.size(), 3u);
    EXPECT_EQ(states[0].name, "layers.1.moe.router.bias");
    std::vector<std::vector<double>> expected(3, std::vector<double>(8));
    for (int64_t s = 0; s < 3; ++s) {
      step(rank, data, s, 1e-3);
      const auto tokens = take_expert_tokens(rank, world);
      for (size_t layer = 0; layer < 3; ++layer) {
        for (size_t e = 0; e < 8; ++e) {
          const double mean = static_cast<double>(config.train.batch * config.model.context * 2) / 8;
          const double missing = mean - static_cast<double>(tokens[layer][e]);
          expected[layer][e] += missing > 0 ? kRate : missing < 0 ? -kRate : 0;
          EXPECT_EQ(states[layer].value.span<double>()[e], expected[layer][e]) << "step " << s;
        }
      }
    }
  });
}

TEST(RouterBias, EvensTheLoadOfARouterThatDoesNotLearn) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const Scores scores : {Scores::softmax, Scores::sigmoid}) {
    TrainConfig config = biased({});
    config.model.moe.scores = scores;
    const Dataset data = random_text(config, seed);
    run_thread_ranks({.ranks = 1}, [&](Group& world) {
      RankRun rank(config, data.tokenizer().vocabulary(), world);
      step(rank, data, 0, 0);
      const double before = imbalance(take_expert_tokens(rank, world));
      for (int64_t s = 0; s < 100; ++s) step(rank, data, s, 0);
      take_expert_tokens(rank, world);
      for (int64_t s = 0; s < 10; ++s) step(rank, data, s, 0);
      EXPECT_LT(imbalance(take_expert_tokens(rank, world)) - 1, (before - 1) / 2) << before;
    });
  }
}

// A model whose experts are all chosen has the same loss, gradients and weights whatever the bias.
TEST(RouterBias, StaysOutOfWeightsGradientsAndTheirNorm) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  TrainConfig config = biased({});
  config.model.moe.top_k = config.model.moe.experts;
  const Dataset data = random_text(config, seed);
  StepResult results[2];
  for (const bool has_bias : {false, true}) {
    run_thread_ranks({.ranks = 1}, [&](Group& world) {
      RankRun rank(config, data.tokenizer().vocabulary(), world);
      for (const State& s : rank.parameters().states()) {
        std::ranges::fill(s.value.span<double>(), has_bias ? 0.7 : 0);
      }
      results[has_bias ? 1 : 0] = step(rank, data, 0, 1e-3);
      for (const State& s : rank.parameters().states()) {  // nor does weight decay fall on it
        EXPECT_EQ(s.value.span<double>()[0], has_bias ? 0.7 : 0);
      }
    });
  }
  EXPECT_EQ(results[0].loss, results[1].loss);
  EXPECT_EQ(results[0].grad_norm, results[1].grad_norm);
}

}  // namespace
}  // namespace phalanx
