// The sampler against the distribution that its config describes, computed here in long double.
#include "phalanx/infer/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr uint64_t kDraws = 40'000;

Tensor row(const std::vector<double>& logits, DType dtype = DType::f64) {
  const Tensor t = Tensor::empty({1, static_cast<int64_t>(logits.size())}, dtype);
  visit_float(dtype, [&](auto e) {
    std::ranges::transform(logits, t.span<decltype(e)>().begin(),
                           [](double v) { return static_cast<decltype(e)>(v); });
  });
  return t;
}

std::vector<double> random_logits(std::mt19937& random, size_t n) {
  std::vector<double> logits(n);
  std::normal_distribution<double> normal(0, 2);
  for (double& v : logits) v = normal(random);
  return logits;
}

// The probability of every token, 0 for those that are cut.
std::vector<double> distribution(const std::vector<double>& logits, const SamplerConfig& c) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](size_t i) { return logits[i]; });
  if (c.top_k > 0 && static_cast<size_t>(c.top_k) < order.size()) order.resize(static_cast<size_t>(c.top_k));
  std::vector<long double> p(logits.size(), 0);
  long double sum = 0;
  for (const size_t i : order)
    sum += p[i] = std::exp((logits[i] - logits[order[0]]) / (long double)c.temperature);
  std::vector<double> out(logits.size(), 0);
  long double before = 0;
  for (const size_t i : order) {
    if (before / sum < c.top_p) out[i] = static_cast<double>(p[i]);
    before += p[i];
  }
  const double kept = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& v : out) v /= kept;
  return out;
}

// Five standard deviations above what chi-square gives by chance (Wilson and Hilferty).
double chi_square_bound(double freedom) {
  const double spread = 2 / (9 * freedom);
  return freedom * std::pow(1 - spread + 5 * std::sqrt(spread), 3);
}

// Rare outcomes are counted together.
void expect_drawn_from(const std::vector<double>& counts, const std::vector<double>& probabilities) {
  const double n = std::accumulate(counts.begin(), counts.end(), 0.0);
  double chi_square = 0;
  double rare_count = 0;
  double rare_expected = 0;
  int bins = 0;
  const auto add = [&](double count, double expected) {
    chi_square += (count - expected) * (count - expected) / expected;
    ++bins;
  };
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = n * probabilities[i];
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is cut";
    }
    if (expected >= 10) {
      add(counts[i], expected);
    } else {
      rare_count += counts[i];
      rare_expected += expected;
    }
  }
  if (rare_expected >= 10) add(rare_count, rare_expected);
  if (bins > 1) {
    EXPECT_LT(chi_square, chi_square_bound(bins - 1));
  }
}

class SamplerDistribution : public ::testing::TestWithParam<SamplerConfig> {};

TEST_P(SamplerDistribution, IsTheOneThatTheConfigDescribes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  SamplerConfig config = GetParam();
  config.seed = seed;
  for (const size_t vocabulary : {1u, 2u, 13u, 97u}) {
    const std::vector<double> logits = random_logits(random, vocabulary);
    std::vector<double> counts(vocabulary);
    const Tensor tensor = row(logits);
    for (uint64_t position = 0; position < kDraws; ++position) {
      ++counts[static_cast<size_t>(sample(tensor, config, position))];
    }
    expect_drawn_from(counts, distribution(logits, config));
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, SamplerDistribution,
                         ::testing::Values(SamplerConfig{}, SamplerConfig{.temperature = 0.4},
                                           SamplerConfig{.temperature = 3}, SamplerConfig{.top_k = 5},
                                           SamplerConfig{.top_k = 1000}, SamplerConfig{.top_p = 0.63},
                                           SamplerConfig{.temperature = 1.7, .top_k = 6, .top_p = 0.8}));

// Neighbouring positions must not know of each other.
TEST(Sampler, DrawsAtNeighbouringPositionsAreIndependent) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const std::vector<double> logits = {0, 0.5, -0.3};
  const SamplerConfig config = {.seed = seed};
  const std::vector<double> p = distribution(logits, config);
  std::vector<double> pairs(9);
  std::vector<double> expected(9);
  for (size_t i = 0; i < 9; ++i) expected[i] = p[i / 3] * p[i % 3];
  const Tensor tensor = row(logits);
  for (uint64_t i = 0; i < kDraws; ++i) {
    const auto first = static_cast<size_t>(sample(tensor, config, 2 * i));
    ++pairs[first * 3 + static_cast<size_t>(sample(tensor, config, 2 * i + 1))];
  }
  expect_drawn_from(pairs, expected);
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowerOfEquals) {
  EXPECT_EQ(sample(row({1, 3, 2}), {.temperature = 0}, 7), 1);
  EXPECT_EQ(sample(row({1, 3, 2, 3}, DType::f32), {.temperature = 0}, 7), 1);
  EXPECT_EQ(sample(row({-kInfinity, -4}), {.temperature = 0}, 7), 1);
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 50; ++i) {
    const std::vector<double> logits = random_logits(random, 31);
    const auto best = static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
    for (const SamplerConfig& config : {SamplerConfig{.temperature = 0}, SamplerConfig{.top_k = 1},
                                        SamplerConfig{.top_p = 1e-9}, SamplerConfig{.temperature = 1e-300}}) {
      EXPECT_EQ(sample(row(logits), config, random()), best);
    }
  }
}

std::set<int32_t> drawn(const std::vector<double>& logits, const SamplerConfig& config) {
  std::set<int32_t> tokens;
  for (uint64_t position = 0; position < 2000; ++position)
    tokens.insert(sample(row(logits), config, position));
  return tokens;
}

TEST(Sampler, CutsAmongEqualsKeepTheLowerTokens) {
  EXPECT_EQ(drawn({1, 1, 1, 1}, {.top_k = 2}), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(drawn({0, 1, 0, 1, 0}, {.top_k = 3}), (std::set<int32_t>{0, 1, 3}));
  EXPECT_EQ(drawn({1, 1, 1, 1}, {.top_p = 0.6}), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(drawn({1, 1, 1, 1}, {.top_p = 0.5}), (std::set<int32_t>{0, 1}));  // sums to exactly p
}

TEST(Sampler, AMaskedTokenIsNeverDrawn) {
  EXPECT_EQ(drawn({-kInfinity, 0, -kInfinity, 0}, {.temperature = 1e6}), (std::set<int32_t>{1, 3}));
}

TEST(Sampler, IsAFunctionOfSeedAndPosition) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<double> logits = random_logits(random, 1000);
  for (double& v : logits) v = static_cast<float>(v);  // the same number in both types
  const auto text = [&](uint64_t draw_seed, DType dtype) {
    std::vector<int32_t> tokens;
    for (uint64_t position = 0; position < 50; ++position) {
      tokens.push_back(sample(row(logits, dtype), {.temperature = 2, .seed = draw_seed}, position));
    }
    return tokens;
  };
  EXPECT_EQ(text(seed, DType::f64), text(seed, DType::f64));
  EXPECT_NE(text(seed, DType::f64), text(seed + 1ull, DType::f64));
  EXPECT_EQ(text(seed, DType::f32), text(seed, DType::f64));
}

TEST(Sampler, RefusesBrokenLogits) {
  const double nan = std::nan("");
  for (const double temperature : {0.0, 1.0}) {
    const SamplerConfig config = {.temperature = temperature};
    EXPECT_THAT(
        [&] {
          sample(row({0, 1, nan}), config, 0);
        },
        ThrowsMessage<Error>(HasSubstr("token 2 is NaN")));
    EXPECT_THAT(
        [&] {
          sample(row({kInfinity, 1}, DType::f32), config, 0);
        },
        ThrowsMessage<Error>(HasSubstr("token 0 is infinite")));
    EXPECT_THAT(
        [&] {
          sample(row({-kInfinity, -kInfinity}), config, 0);
        },
        ThrowsMessage<Error>(HasSubstr("every logit")));
  }
}

TEST(Sampler, RefusesAConfigOutOfRange) {
  const auto refuses = [](const SamplerConfig& config, const char* says) {
    EXPECT_THAT([&] { check(config); }, ThrowsMessage<Error>(HasSubstr(says)));
    EXPECT_THAT([&] { sample(row({0, 1}), config, 0); }, ThrowsMessage<Error>(HasSubstr(says)));
  };
  refuses({.temperature = -0.1}, "temperature -0.1");
  refuses({.temperature = std::nan("")}, "temperature nan");
  refuses({.temperature = kInfinity}, "temperature inf");
  refuses({.top_k = -1}, "top-k -1");
  refuses({.top_p = 0}, "top-p 0");
  refuses({.top_p = 1.0001}, "top-p 1.0001");
  refuses({.top_p = std::nan("")}, "top-p nan");
}

}  // namespace
}  // namespace phalanx
