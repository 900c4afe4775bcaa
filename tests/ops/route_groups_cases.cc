// Routing by biased scores within groups, against DeepSeek-V3's rule written with plain loops.
#include <algorithm>
#include <limits>
#include <numeric>

#include "phalanx/ops/route.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

struct Case {
  int64_t experts;
  int groups;
  int top_groups;
  int top_k;
};
constexpr Case kCases[] = {{8, 4, 2, 3},  {77, 7, 3, 8},  {6, 6, 4, 2},       {64, 8, 4, 8},   {5, 1, 1, 2},
                           {12, 3, 1, 4}, {256, 8, 4, 8}, {300, 100, 40, 33}, {1000, 1, 1, 10}};

// The places of the n largest, best first, ties to the lower one.
std::vector<size_t> best(const Values& v, int n) {
  std::vector<size_t> order(v.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](size_t i) { return v[i]; });
  order.resize(static_cast<size_t>(n));
  return order;
}

std::vector<size_t> choice(Values biased, const Case& c) {
  const size_t size = biased.size() / static_cast<size_t>(c.groups);
  Values sums;
  for (size_t g = 0; g < static_cast<size_t>(c.groups); ++g) {
    Values group(biased.begin() + static_cast<int64_t>(g * size),
                 biased.begin() + static_cast<int64_t>((g + 1) * size));
    std::ranges::sort(group, std::greater<>());
    sums.push_back(group[0] + (size > 1 ? group[1] : 0));
  }
  const std::vector<size_t> kept = best(sums, c.top_groups);
  for (size_t e = 0; e < biased.size(); ++e) {
    if (std::ranges::find(kept, e / size) == kept.end()) biased[e] = -std::numeric_limits<double>::infinity();
  }
  return best(biased, c.top_k);
}

TEST_P(RouteGroups, TheBiasChoosesAndTheScoresWeigh) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : kCases) {
    for (const Scores scores : {Scores::softmax, Scores::sigmoid}) {
      const RoutingConfig config = {.scores = scores,
                                    .top_k = c.top_k,
                                    .normalise = random.integer(0, 1) == 0,
                                    .scaling = 2.5,
                                    .groups = c.groups,
                                    .top_groups = c.top_groups};
      const Tensor logits = random.tensor({31, c.experts}, DType::f64);
      const Tensor bias = random.tensor({c.experts}, DType::f64, 0.5);  // some biased scores are negative
      for_each_target_here([&](bool) {
        const Routing got = route(here(logits), config, here(bias));
        const Values s = values(got.scores_TE);
        const std::vector<int64_t> idx = list(got.topk_idx_TK);
        const Values weights = values(got.weights_TK);
        const auto experts = static_cast<size_t>(c.experts);
        const auto k = static_cast<size_t>(c.top_k);
        for (size_t r = 0; r < 31; ++r) {
          Values biased;
          for (size_t e = 0; e < experts; ++e) biased.push_back(s[r * experts + e] + values(bias)[e]);
          const std::vector<size_t> want = choice(biased, c);
          double sum = 0;
          for (const size_t e : want) sum += s[r * experts + e];
          for (size_t i = 0; i < k; ++i) {
            ASSERT_EQ(idx[r * k + i], static_cast<int64_t>(want[i])) << "row " << r;
            const double weight = 2.5 * s[r * experts + want[i]] / (config.normalise ? sum : 1);
            ASSERT_NEAR(weights[r * k + i], weight, 1e-14 * weight);
          }
        }
      });
    }
  }
}

TEST_P(RouteGroups, TiesGoToTheLowerGroupAndExpert) {
  const RoutingConfig config = {.top_k = 3, .groups = 3, .top_groups = 2};
  for_each_target_here([&](bool) {
    const Routing even = route(here(Tensor::zeros({1, 6}, DType::f32)), config);
    EXPECT_EQ(list(even.topk_idx_TK), (std::vector<int64_t>{0, 1, 2}));
    const Tensor bias = tensor({6}, DType::f32, {0, 0, 0, 1, 1, 0});
    const Routing biased = route(here(Tensor::zeros({1, 6}, DType::f32)), config, here(bias));
    EXPECT_EQ(list(biased.topk_idx_TK), (std::vector<int64_t>{3, 4, 2}));
    expect_close(values(biased.weights_TK), Values(3, 1.0 / 3), within(4, DType::f32), "weights");
  });
}

// Of a diverged model too: experts that are there, each once, of no more groups than may be.
TEST_P(RouteGroups, NamesDistinctExpertsAmongNan) {
  Random random;
  SCOPED_TRACE(random.trace());
  Values logits(40 * 9);
  for (double& v : logits) v = random.integer(0, 2) == 0 ? std::nan("") : random.normal();
  for (const Scores scores : {Scores::softmax, Scores::sigmoid}) {
    const RoutingConfig config = {.scores = scores, .top_k = 5, .groups = 3, .top_groups = 2};
    const std::vector<int64_t> idx =
        list(route(here(tensor({40, 9}, DType::f32, logits)), config).topk_idx_TK);
    for (size_t r = 0; r < 40; ++r) {
      std::vector<int64_t> row(idx.begin() + static_cast<int64_t>(5 * r),
                               idx.begin() + static_cast<int64_t>(5 * r + 5));
      std::ranges::sort(row);
      EXPECT_TRUE(row.front() >= 0 && row.back() < 9);
      EXPECT_EQ(std::ranges::adjacent_find(row), row.end());
      for (int64_t& e : row) e /= 3;
      row.erase(std::unique(row.begin(), row.end()), row.end());
      EXPECT_LE(row.size(), 2u);
    }
  }
}

TEST_P(RouteGroups, RefusesMoreThanTheGroupsHave) {
  const Tensor logits = here(Tensor::zeros({1, 6}, DType::f32));
  EXPECT_THROW(route(logits, {.top_k = 3, .groups = 3, .top_groups = 1}), BrokenPromise);
  EXPECT_THROW(route(logits, {.top_k = 1, .groups = 4, .top_groups = 1}), BrokenPromise);
  EXPECT_THROW(route(logits, {.top_k = 1, .groups = 2, .top_groups = 3}), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
