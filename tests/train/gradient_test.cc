// The gradients of a step on one rank against finite differences, for every kind of model.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "tests/train/step_models.h"
#include "tests/train/step_rank.h"

namespace phalanx {
namespace {

// How often each expert of each layer was chosen since the last call.
std::vector<int64_t> take_expert_tokens(Transformer& model) {
  std::vector<int64_t> counts;
  for (Moe* moe : model.moe_layers()) {
    std::vector<int64_t>& layer = moe->statistics().expert_tokens;
    counts.insert(counts.end(), layer.begin(), layer.end());
    std::ranges::fill(layer, 0);
  }
  return counts;
}

struct Case {
  const char* name;
  ModelConfig config;
};

// Of each parameter.
std::vector<std::vector<double>> gradients(ParameterStore& store) {
  std::vector<std::vector<double>> all;
  for (const Parameter& p : store.all()) {
    const auto grad = store.own_grad(p).span<double>();
    all.emplace_back(grad.begin(), grad.end());
  }
  return all;
}

class GradientTest : public testing::TestWithParam<Case> {};

// By central differences of fourth order, of the loss, the balance loss and that of multi-token prediction
// together.
TEST_P(GradientTest, IsTheDerivativeOfTheLoss) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const Case& c = GetParam();
  run_thread_ranks({.ranks = 1, .threads_per_rank = 1}, [&](Group& world) {
    Rank rank(world, {}, c.config, DType::f64, "overlapped", seed);
    const std::vector<Batch> micro = batches(rank.mesh, rank.model.context_share(), c.config, seed);
    compute_gradients(rank.trainer, micro, 5);
    const std::vector<std::vector<double>> analytic = gradients(rank.store);
    const std::vector<int64_t> routing = take_expert_tokens(rank.model);
    int compared = 0;
    int rerouted = 0;  // the loss has no derivative where a token changes its expert
    for (size_t n = 0; n < analytic.size(); ++n) {
      Parameter& p = rank.store.all()[n];
      const std::vector<double>& grad = analytic[n];
      for (size_t i = seed % 5; i < grad.size(); i += 17) {
        double& w = p.value().span<double>()[i];
        const double before = w;
        bool same_routing = true;
        const auto loss_at = [&](double offset) {
          w = before + offset;
          const StepResult r = compute_gradients(rank.trainer, micro, 5);
          w = before;
          same_routing = take_expert_tokens(rank.model) == routing && same_routing;
          return r.loss + c.config.moe.balance_loss * r.balance_loss + c.config.mtp_weight * r.mtp_loss;
        };
        const double h = 1e-4;
        const double slope = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
        ++compared;
        if (!same_routing) {
          ++rerouted;
          continue;
        }
        EXPECT_NEAR(slope, grad[i], 1e-6 * (1 + std::abs(grad[i]))) << p.name() << " " << i;
      }
    }
    EXPECT_LT(rerouted, compared / 3);
  });
}

// The loss and its gradient together, of some rows at once, or of all and one after the other.
TEST_P(GradientTest, IsTheSameWithTheLossMadeByRows) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const Case& c = GetParam();
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    Rank rank(world, {}, c.config, DType::f64, "overlapped", seed);
    const std::vector<Batch> micro = batches(rank.mesh, rank.model.context_share(), c.config, seed);
    const StepResult whole = compute_gradients(rank.trainer, micro, 5);
    const std::vector<std::vector<double>> want = gradients(rank.store);
    for (const int64_t rows : {1, 7, 1000}) {
      SCOPED_TRACE(rows);
      rank.trainer.loss_rows = rows;
      const StepResult by_rows = compute_gradients(rank.trainer, micro, 5);
      EXPECT_NEAR(by_rows.loss, whole.loss, 1e-13 * whole.loss);
      EXPECT_NEAR(by_rows.mtp_loss, whole.mtp_loss, 1e-13 * whole.loss);
      const std::vector<std::vector<double>> got = gradients(rank.store);
      for (size_t n = 0; n < want.size(); ++n) {
        for (size_t i = 0; i < want[n].size(); ++i)
          ASSERT_NEAR(got[n][i], want[n][i], 1e-13) << n << " " << i;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Models, GradientTest,
                         testing::Values(Case{"gpt", gpt()}, Case{"llama", llama()}, Case{"mla", mla()},
                                         Case{"moe", moe()}, Case{"sigmoid", sigmoid_moe_with_dropout()},
                                         Case{"gpt_mtp", with_mtp(gpt())}, Case{"moe_mtp", with_mtp(moe())},
                                         Case{"mla_mtp", with_mtp(mla())}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx
