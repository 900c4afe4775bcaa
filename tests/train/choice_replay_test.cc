#include "phalanx/train/choice_replay.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "tests/train/step_models.h"
#include "tests/train/step_rank.h"

namespace phalanx {
namespace {

const std::string kRouter = "layers.2.mlp.router";

struct Tokens {
  Tensor numbers_T;
  Routing routing;
};

Tokens tokens(std::vector<int64_t> numbers, const std::vector<double>& logits_T2) {
  const Tensor logits = Tensor::of(Shape{std::ssize(numbers), 2}, std::span<const double>(logits_T2));
  return {Tensor::of(Shape{std::ssize(numbers)}, std::span<const int64_t>(numbers)), route(logits, {})};
}

Routed seen(const Tokens& t, uint64_t step = 0) {
  static const Tensor no_bias;
  static const RoutingConfig config;
  return {kRouter, step, false, t.numbers_T, config, no_bias, t.routing};
}

std::vector<int64_t> chosen(const Tokens& t) {
  const auto idx = t.routing.topk_idx_TK.span<int64_t>();
  return {idx.begin(), idx.end()};
}

TEST(ChoiceReplay, ReplaysCloseChoicesAloneByNumberAndStep) {
  CloseChoices close(1e-3);
  RecordChoices(close).routed(seen(tokens({4, 5, 6}, {1, 1.0001, 1, 1.0001, 0, 2})));
  // The same tokens on another rank, in another order: each would choose expert 0.
  const Tokens other = tokens({6, 5, 7}, {2, 0, 1.0001, 1, 1.0001, 1});
  ASSERT_EQ(chosen(other), (std::vector<int64_t>{0, 0, 0}));
  ReplayChoices replay(close);
  replay.routed(seen(other, 1));
  EXPECT_EQ(chosen(other), (std::vector<int64_t>{0, 0, 0}));  // of another step nothing is known
  EXPECT_EQ(replay.tokens(), 0);
  replay.routed(seen(other));
  EXPECT_EQ(chosen(other), (std::vector<int64_t>{0, 1, 0}));  // 6 was not close, 7 not seen
  EXPECT_EQ(replay.tokens(), 1);
  replay.routed(seen(other));
  EXPECT_EQ(replay.tokens(), 1);  // alike by now
}

// Every choice of one rank is close here, and each rank of the layout chooses by another bias.
TEST(ChoiceReplay, ReachesEveryRouterOfEveryLayout) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const ModelConfig config = six_tokens(divisible(moe()));
  CloseChoices close(std::numeric_limits<double>::infinity());
  RecordChoices record(close);
  ReplayChoices replay(close);
  const auto gradients = [&](const Layout& layout, RoutingWatch& watch) {
    double norm = 0;
    run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
      Rank rank(world, layout, config, DType::f64, "sequential", seed);
      rank.trainer.watch = &watch;
      rank.trainer.recompute = {.what = Recompute::full};
      if (layout.ranks() > 1) rank.store.states()[0].value.span<double>()[0] = 9;
      const auto texts = batches(rank.mesh, rank.model.context_share(), config, seed);
      const StepResult result = compute_gradients(rank.trainer, texts, 0);
      if (world.rank() == 0) norm = result.grad_norm;
    });
    return norm;
  };
  const double one = gradients({}, record);
  const Layout layouts[] = {{.dp = 2, .ep = 2}, {.tp = 2}, {.cp = 2}, {.dp = 2, .tp = 2, .ep = 4}};
  for (const Layout& layout : layouts) {
    SCOPED_TRACE(layout.text());
    const int64_t before = replay.tokens();
    EXPECT_NEAR(gradients(layout, replay) / one, 1, 1e-12);
    EXPECT_GT(replay.tokens(), before);
    const CloseChoices none(0);
    ReplayChoices nothing(none);
    EXPECT_GT(std::abs(gradients(layout, nothing) / one - 1), 1e-9);  // the bias does matter
  }
}

}  // namespace
}  // namespace phalanx
