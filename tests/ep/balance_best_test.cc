// The better solver: what every placement of it must hold, how near the bound it comes, and moves.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "phalanx/base/error.h"
#include "phalanx/ep/balance.h"
#include "tests/ep/balance_cases.h"

namespace phalanx::ep {
namespace {

// Duplicates that no placement avoids: GPUs with more slots than their node has experts.
int64_t unavoidable(const BalanceSizes& s) {
  return s.layers * s.gpus * std::max<int64_t>(0, s.slots() - s.experts / s.closed_nodes());
}

int64_t duplicates_of_layer(const ReplicaPlacement& p, int64_t layer) {
  BalanceSizes one = p.sizes;
  one.layers = 1;
  const auto slots = p.slots_of_layer(layer);
  return duplicates(placement_of(one, {slots.begin(), slots.end()}));
}

// Slots full, every expert there (placement_of checks both), whole groups on one node.
void expect_sound(const ReplicaPlacement& p) {
  const BalanceSizes& s = p.sizes;
  const ReplicaPlacement again = placement_of(s, p.phy2log);
  EXPECT_EQ(again.log2phy, p.log2phy);
  EXPECT_EQ(again.logcnt, p.logcnt);
  if (s.closed_nodes() == 1) return;
  for (int64_t l = 0; l < s.layers; ++l) {
    std::vector<int64_t> node_of_group(static_cast<size_t>(s.groups), -1);
    for (int64_t i = 0; i < s.replicas; ++i) {
      const int64_t group = p.slots_of_layer(l)[static_cast<size_t>(i)] / (s.experts / s.groups);
      int64_t& node = node_of_group[static_cast<size_t>(group)];
      if (node < 0) node = i / (s.replicas / s.nodes);
      ASSERT_EQ(node, i / (s.replicas / s.nodes)) << "layer " << l << ", group " << group;
    }
  }
}

TEST(BalanceBest, HoldsItsPromisesOnRandomCases) {
  for (int i = 0; i < 1000; ++i) {
    RandomCase c;
    SCOPED_TRACE(c.text());
    const ReplicaPlacement p = balance_experts(c.weight, c.sizes);
    expect_sound(p);
    EXPECT_EQ(balance_experts(c.weight, c.sizes).phy2log, p.phy2log);
    const ReplicaPlacement eplb = rebalance_experts(c.weight, c.sizes);
    const std::vector<double> reached = max_over_mean(c.weight, p);
    const std::vector<double> theirs = max_over_mean(c.weight, eplb);
    const std::vector<double> bound = lower_bound(c.weight, c.sizes);
    for (size_t l = 0; l < reached.size(); ++l) {
      EXPECT_GE(reached[l], bound[l]);
      EXPECT_GE(theirs[l], bound[l]);
      if (duplicates(eplb) == 0 || c.sizes.closed_nodes() > 1) {
        EXPECT_LE(reached[l], theirs[l] * (1 + 1e-12));
      }
      if (!std::ranges::equal(p.slots_of_layer(static_cast<int64_t>(l)),
                              eplb.slots_of_layer(static_cast<int64_t>(l)))) {
        EXPECT_EQ(duplicates_of_layer(p, static_cast<int64_t>(l)), unavoidable(c.sizes) / c.sizes.layers);
      }
    }
    if (c.sizes.closed_nodes() == 1) {
      EXPECT_EQ(duplicates(p), unavoidable(c.sizes));
    }
    if (HasFailure()) return;
  }
}

// Loads of real sizes, as the benchmark draws them.
std::vector<float> loads_of(const BalanceSizes& s, double deviation, double exponent) {
  std::normal_distribution<double> normal;
  std::vector<float> loads;
  for (int64_t l = 0; l < s.layers; ++l) {
    for (int64_t e = 0; e < s.experts; ++e) {
      double load = static_cast<double>(random_between(0, 100'000));
      if (deviation > 0) load = 1e4 * std::exp(deviation * normal(test_random()));
      if (exponent > 0) load = 1e6 * std::pow(static_cast<double>(e + 1), -exponent);
      loads.push_back(static_cast<float>(std::floor(load)));
    }
  }
  return loads;
}

const BalanceSizes kRealSizes[] = {{.layers = 8, .experts = 256, .replicas = 288, .gpus = 32},
                                   {.layers = 8, .experts = 384, .replicas = 448, .gpus = 64},
                                   {.layers = 8, .experts = 256, .replicas = 320, .gpus = 64}};

TEST(BalanceBest, IsWithinHalfAPercentOfTheBound) {
  struct Loads {
    double deviation;
    double exponent;
  };
  for (const BalanceSizes& s : kRealSizes) {
    for (const Loads& kind : {Loads{0, 0}, {1, 0}, {0, 1}, {0, 1.2}}) {
      const std::vector<float> weight = loads_of(s, kind.deviation, kind.exponent);
      const ReplicaPlacement p = balance_experts(weight, s);
      const std::vector<double> reached = max_over_mean(weight, p);
      const std::vector<double> bound = lower_bound(weight, s);
      EXPECT_EQ(duplicates(p), 0);
      for (size_t l = 0; l < bound.size(); ++l) {
        EXPECT_LE(reached[l], 1.005 * bound[l])
            << s.replicas << " on " << s.gpus << ", " << kind.deviation << ", " << kind.exponent;
      }
    }
  }
}

TEST(BalanceBest, OneExpertMayHaveAllTheLoad) {
  const BalanceSizes s{.experts = 16, .replicas = 32, .gpus = 8};
  std::vector<float> weight(16, 0);
  weight[5] = 8;
  const ReplicaPlacement p = balance_experts(weight, s);
  EXPECT_EQ(p.logcnt[5], 8);
  EXPECT_EQ(max_over_mean(weight, p), (std::vector<double>{1}));
  EXPECT_EQ(duplicates(p), 0);
}

TEST(BalanceBest, WithAsManySlotsAsExpertsEveryGpuHasAll) {
  const BalanceSizes s{.experts = 3, .replicas = 20, .gpus = 4};
  const std::vector<float> weight = {7, 0, 100};
  const ReplicaPlacement p = balance_experts(weight, s);
  EXPECT_NEAR(max_over_mean(weight, p)[0], 1, 1e-12);
  EXPECT_EQ(duplicates(p), 4 * 2);
}

// Experts that a GPU had and has are in the slots in which they were.
void expect_kept_in_slots(std::span<const int32_t> before, const ReplicaPlacement& now) {
  const auto slots = static_cast<size_t>(now.sizes.slots());
  for (size_t at = 0; at < before.size(); at += slots) {
    const auto had = before.subspan(at, slots);
    const auto has = std::span(now.phy2log).subspan(at, slots);
    for (size_t i = 0; i < slots; ++i) {
      const auto copies = [&](std::span<const int32_t> gpu) { return std::ranges::count(gpu, had[i]); };
      if (copies(has) >= copies(had)) {
        EXPECT_EQ(has[i], had[i]);
      }
    }
  }
}

TEST(BalanceBest, MovesAtMostAsManyAsAllowed) {
  for (int i = 0; i < 400; ++i) {
    RandomCase c;
    SCOPED_TRACE(c.text());
    std::vector<float> then = c.weight;
    std::ranges::shuffle(then, test_random());
    const ReplicaPlacement old =
        random_between(0, 1) == 0 ? balance_experts(then, c.sizes) : rebalance_experts(then, c.sizes);
    const std::vector<double> stayed = max_over_mean(c.weight, old);
    const int64_t most = random_between(0, c.sizes.layers * c.sizes.replicas);
    const ReplicaPlacement p =
        balance_experts(c.weight, c.sizes, {.phy2log = old.phy2log, .max_moves = most});
    expect_sound(p);
    EXPECT_LE(moved(old.phy2log, p), most);
    expect_kept_in_slots(old.phy2log, p);
    const std::vector<double> reached = max_over_mean(c.weight, p);
    for (size_t l = 0; l < reached.size(); ++l) EXPECT_LE(reached[l], stayed[l] * (1 + 1e-12));
    EXPECT_EQ(balance_experts(c.weight, c.sizes, {.phy2log = old.phy2log, .max_moves = 0}).phy2log,
              old.phy2log);
    if (HasFailure()) return;
  }
}

// Of what loads that drifted by a fifth lose, few moves win back the most.
TEST(BalanceBest, FewMovesFollowADrift) {
  const BalanceSizes& s = kRealSizes[0];
  const std::vector<float> then = loads_of(s, 1, 0);
  std::vector<float> weight = then;
  std::uniform_real_distribution<float> drift(0.8F, 1.2F);
  for (float& w : weight) w = std::floor(w * drift(test_random()));
  const ReplicaPlacement old = balance_experts(then, s);
  const auto mean_excess = [&](int64_t moves) {
    double sum = 0;
    for (const double r : max_over_mean(weight, balance_experts(weight, s, {old.phy2log, moves})))
      sum += r - 1;
    return sum / static_cast<double>(s.layers);
  };
  const double none = mean_excess(0);
  EXPECT_GT(none, 0.02);
  EXPECT_LT(mean_excess(s.layers * s.replicas / 20), 0.7 * none);
  EXPECT_LT(mean_excess(s.layers * s.replicas / 5), 0.3 * none);
  EXPECT_LT(mean_excess(s.layers * s.replicas), 0.0021);
}

TEST(BalanceBest, AnIncumbentThatDoesNotFitIsRefused) {
  const BalanceSizes s{.experts = 4, .replicas = 8, .groups = 2, .nodes = 2, .gpus = 4};
  const std::vector<float> weight = {1, 2, 3, 4};
  const std::vector<int32_t> good = {0, 1, 1, 0, 2, 3, 3, 2};
  EXPECT_NO_THROW(balance_experts(weight, s, {.phy2log = good}));
  EXPECT_THROW(balance_experts(weight, s, {.phy2log = good, .max_moves = -1}), Error);
  EXPECT_THROW(balance_experts(weight, s, {.phy2log = std::span(good).first(7)}), Error);
  std::vector<int32_t> bad = good;
  bad[0] = 4;
  EXPECT_THROW(balance_experts(weight, s, {.phy2log = bad}), Error);
  bad = {0, 1, 1, 0, 2, 3, 0, 2};  // expert 0 on both nodes
  try {
    balance_experts(weight, s, {.phy2log = bad});
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("layer 0: expert 0 is on nodes 0 and 1"), std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace phalanx::ep
