#include "phalanx/ops/route.h"

#include <algorithm>
#include <numeric>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

constexpr Scores kScores[] = {Scores::softmax, Scores::sigmoid};

// Logits within ±6 (where f32 still tells logistic values apart) and well apart in a row, so that neither
// rounding nor a finite difference changes who is chosen.
Tensor distinct_logits(Random& random, const Shape& shape, DType dtype) {
  Values logits;
  const double apart = 12 / static_cast<double>(shape[1]);
  for (int64_t r = 0; r < shape[0]; ++r) {
    Values row(static_cast<size_t>(shape[1]));
    for (size_t e = 0; e < row.size(); ++e)
      row[e] = apart * (static_cast<double>(e) + random.uniform(0.2, 0.8)) - 6;
    for (size_t e = row.size(); e-- > 1;) {
      std::swap(row[e], row[static_cast<size_t>(random.integer(0, static_cast<int64_t>(e)))]);
    }
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return tensor(shape, dtype, logits);
}

double balance_loss_of(const Routing& routing, const Tensor& offsets) {
  return values(balance_loss(routing, offsets, balance_counts(routing, offsets)))[0];
}

struct Reference {
  std::vector<int64_t> idx;
  Values weights, scores;
};

Reference reference(const Tensor& logits, const RoutingConfig& c) {
  const Values in = values(logits);
  const auto experts = static_cast<size_t>(logits.dim(1));
  Reference out;
  for (size_t first = 0; first < in.size(); first += experts) {
    Values s(in.begin() + static_cast<int64_t>(first), in.begin() + static_cast<int64_t>(first + experts));
    const double max = *std::ranges::max_element(s);
    for (double& v : s) v = c.scores == Scores::sigmoid ? 1 / (1 + std::exp(-v)) : std::exp(v - max);
    const double sum = c.scores == Scores::sigmoid ? 1 : std::accumulate(s.begin(), s.end(), 0.0);
    for (double& v : s) v /= sum;
    std::vector<int64_t> order(experts);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::greater<>(), [&](int64_t e) { return s[static_cast<size_t>(e)]; });
    order.resize(static_cast<size_t>(c.top_k));
    double chosen = 1e-20;
    for (const int64_t e : order) chosen += s[static_cast<size_t>(e)];
    for (const int64_t e : order) {
      out.idx.push_back(e);
      out.weights.push_back(s[static_cast<size_t>(e)] / (c.normalise ? chosen : 1) * c.scaling);
    }
    out.scores.insert(out.scores.end(), s.begin(), s.end());
  }
  return out;
}

// All ways to configure top k.
std::vector<RoutingConfig> configs(int k) {
  std::vector<RoutingConfig> out;
  for (const Scores scores : kScores) {
    for (const bool normalise : {false, true}) {
      out.push_back({.scores = scores, .top_k = k, .normalise = normalise, .scaling = normalise ? 2.5 : 1});
    }
  }
  return out;
}

TEST_P(Route, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const auto& [shape, k] : {std::pair(Shape{0, 4}, 2),
                                   {Shape{1, 1}, 1},
                                   {Shape{7, 5}, 5},
                                   {Shape{33, 8}, 2},
                                   {Shape{9, 77}, 8},
                                   {Shape{3, 130}, 40}}) {
      SCOPED_TRACE(format("top {} of {} {}", k, shape, dtype_name(dtype)));
      const Tensor logits = distinct_logits(random, shape, dtype);
      for (const RoutingConfig& c : configs(k)) {
        const Reference want = reference(logits, c);
        for_each_target_here([&](bool) {
          const Routing got = route(here(logits), c);
          EXPECT_EQ(list(got.topk_idx_TK), want.idx);
          expect_close(values(got.weights_TK), want.weights, within(16, dtype), "weights");
          expect_close(values(got.scores_TE), want.scores, within(16, dtype), "scores");
        });
      }
    }
  }
}

TEST_P(Route, GivesTiesToTheLowerExpert) {
  const Tensor logits = tensor({2, 5}, DType::f32, {1, 2, 1, 2, 2, 0, 0, 0, 0, 0});
  for (const RoutingConfig& c : configs(3)) {
    for_each_target_here([&](bool) {
      EXPECT_EQ(list(route(here(logits), c).topk_idx_TK), (std::vector<int64_t>{1, 3, 4, 0, 1, 2}));
    });
  }
}

TEST_P(Route, HoldsAtAnyMagnitude) {
  const double huge = 3e38;
  const Tensor logits = tensor({2, 4}, DType::f32, {huge, -huge, huge, 0, -huge, -huge, -huge, -huge});
  for_each_target_here([&](bool) {
    const Routing softmax = route(here(logits), {.scores = Scores::softmax, .top_k = 2});
    EXPECT_EQ(list(softmax.topk_idx_TK), (std::vector<int64_t>{0, 2, 0, 1}));
    expect_close(values(softmax.weights_TK), {0.5, 0.5, 0.5, 0.5}, within(4, DType::f32), "weights");
    const Routing sigmoid = route(here(logits), {.scores = Scores::sigmoid, .top_k = 2});
    EXPECT_EQ(list(sigmoid.topk_idx_TK), (std::vector<int64_t>{0, 2, 0, 1}));
    expect_close(values(sigmoid.weights_TK), {0.5, 0.5, 0, 0}, within(4, DType::f32), "weights");
  });
}

// What a diverged model hands over still names experts that are there, each once.
TEST_P(Route, NamesDistinctExpertsAmongNan) {
  Random random;
  SCOPED_TRACE(random.trace());
  Values logits(40 * 9);
  for (double& v : logits) v = random.integer(0, 2) == 0 ? std::nan("") : random.normal();
  for (const RoutingConfig& c : configs(4)) {
    const std::vector<int64_t> idx = list(route(here(tensor({40, 9}, DType::f32, logits)), c).topk_idx_TK);
    for (size_t r = 0; r < 40; ++r) {
      std::vector<int64_t> row(idx.begin() + static_cast<int64_t>(4 * r),
                               idx.begin() + static_cast<int64_t>(4 * r + 4));
      std::ranges::sort(row);
      EXPECT_TRUE(row.front() >= 0 && row.back() < 9);
      EXPECT_EQ(std::ranges::adjacent_find(row), row.end());
    }
  }
}

TEST_P(Route, RefusesMoreThanThereAre) {
  const Tensor logits = Tensor::zeros({1, 3}, DType::f32);
  for (const int k : {0, 4}) EXPECT_THROW(route(here(logits), {.top_k = k}), BrokenPromise);
}

TEST_P(Route, BackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const RoutingConfig& c : configs(3)) {
    const Tensor logits = distinct_logits(random, {4, 7}, DType::f64);
    const Tensor dweights = random.tensor({4, 3}, DType::f64);
    const Tensor dscores = random.integer(0, 1) == 0 ? Tensor() : random.tensor({4, 7}, DType::f64);
    const auto loss = [&] {
      const Routing r = route(here(logits), c);
      return dot(dweights, r.weights_TK) + (dscores.defined() ? dot(dscores, r.scores_TE) : 0);
    };
    for_each_target_here([&](bool) {
      const Tensor dscores_here = dscores.defined() ? here(dscores) : Tensor();
      const Tensor dlogits = route_backward(here(dweights), dscores_here, route(here(logits), c), c);
      expect_gradient(values(dlogits), numeric_gradient(logits, loss), "logits");
    });
  }
}

// f32 against f64, on the same logits.
TEST_P(Route, BackwardInSinglePrecision) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const RoutingConfig& c : configs(4)) {
    const Tensor logits = distinct_logits(random, {40, 19}, DType::f32);
    const Tensor dweights = random.tensor({40, 4}, DType::f32);
    const Tensor wide = tensor(logits.shape(), DType::f64, values(logits));
    const Tensor dwide = tensor(dweights.shape(), DType::f64, values(dweights));
    const Values want = values(route_backward(here(dwide), Tensor(), route(here(wide), c), c));
    for_each_target_here([&](bool) {
      const Tensor got = route_backward(here(dweights), Tensor(), route(here(logits), c), c);
      expect_close(values(got), want, within(64, DType::f32, largest(want)), "dlogits");
    });
  }
}

TEST_P(Route, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor logits = here(random.tensor({2000, 17}, DType::f32));
  const Tensor dweights = here(random.tensor({2000, 2}, DType::f32));
  const Tensor offsets = indices64({5}, {0, 700, 700, 1500, 2000});
  const RoutingConfig c = {.scores = Scores::sigmoid, .top_k = 2};
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Routing r = route(logits, c);
    return {r.topk_idx_TK,
            r.weights_TK,
            r.scores_TE,
            route_backward(dweights, Tensor(), r, c),
            balance_loss(r, offsets, balance_counts(r, offsets)),
            balance_loss_backward(r, offsets, balance_counts(r, offsets), 0.1)};
  });
}

// The definition: for each sequence n · Σ_e f_e · P_e.
double balance_reference(const Routing& routing, const std::vector<int64_t>& offsets) {
  const Values s = values(routing.scores_TE);
  const auto experts = static_cast<size_t>(routing.scores_TE.dim(1));
  const auto k = static_cast<size_t>(routing.topk_idx_TK.dim(1));
  const std::vector<int64_t> idx = list(routing.topk_idx_TK);
  double loss = 0;
  for (size_t b = 0; b + 1 < offsets.size(); ++b) {
    const auto begin = static_cast<size_t>(offsets[b]);
    const auto end = static_cast<size_t>(offsets[b + 1]);
    const auto n = static_cast<double>(end - begin);
    for (size_t e = 0; e < experts; ++e) {
      double chosen = 0;
      double mean = 0;
      for (size_t r = begin; r < end; ++r) {
        chosen += static_cast<double>(std::count(&idx[r * k], &idx[r * k] + k, static_cast<int64_t>(e)));
        mean += s[r * experts + e] / std::accumulate(&s[r * experts], &s[r * experts] + experts, 0.0) / n;
      }
      if (n > 0) loss += n * (static_cast<double>(experts) / (static_cast<double>(k) * n) * chosen) * mean;
    }
  }
  return loss;
}

TEST_P(BalanceLoss, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  const std::vector<int64_t> offsets = {0, 5, 5, 6, 30};
  for (const DType dtype : kFloats) {
    for (const RoutingConfig& c : configs(3)) {
      const Routing routing = route(here(random.tensor({30, 7}, dtype)), c);
      const double want = balance_reference(routing, offsets);
      EXPECT_NEAR(balance_loss_of(routing, indices64({5}, offsets)), want, 1e-12 * want);
    }
  }
}

// Ranks that share the rows sum the counts; what each computes of its rows then sums to the loss.
TEST_P(BalanceLoss, IsTheSumOverPartsOfTheRows) {
  Random random;
  SCOPED_TRACE(random.trace());
  const std::vector<int64_t> offsets = {0, 5, 5, 11, 12};
  const RoutingConfig config = {.top_k = 2};
  const Tensor logits = here(random.tensor({12, 7}, DType::f64));
  const Routing whole = route(logits, config);
  const Tensor counts = balance_counts(whole, indices64({5}, offsets));
  const double loss = values(balance_loss(whole, indices64({5}, offsets), counts))[0];
  const Values gradient = values(balance_loss_backward(whole, indices64({5}, offsets), counts, 0.3));
  for (const int64_t cut : {0, 3, 5, 8, 12}) {
    Values count_sum(4 * 7, 0);
    double loss_sum = 0;
    Values gradient_of_parts;
    for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, int64_t{12}}}) {
      const Routing part = route(logits.slice(begin, end), config);
      std::vector<int64_t> local;
      for (const int64_t o : offsets) local.push_back(std::clamp(o, begin, end) - begin);
      const Values counted = values(balance_counts(part, indices64({5}, local)));
      for (size_t i = 0; i < counted.size(); ++i) count_sum[i] += counted[i];
      loss_sum += values(balance_loss(part, indices64({5}, local), counts))[0];
      const Values g = values(balance_loss_backward(part, indices64({5}, local), counts, 0.3));
      gradient_of_parts.insert(gradient_of_parts.end(), g.begin(), g.end());
    }
    EXPECT_EQ(count_sum, values(counts));
    EXPECT_NEAR(loss_sum, loss, 1e-12 * loss);
    EXPECT_EQ(gradient_of_parts, gradient);
  }
}

// Even scores cost as much as there are tokens; one expert for all of them, with all the score, E times that.
TEST_P(BalanceLoss, KnowsItsExtremes) {
  const Tensor offsets = indices64({2}, {0, 8});
  Values even(8 * 4, 0);
  Values one(8 * 4, 0);
  for (size_t r = 0; r < 8; ++r) even[r * 4 + r % 4] = 1e-9;
  for (size_t r = 0; r < 8; ++r) one[r * 4] = 100;
  EXPECT_NEAR(balance_loss_of(route(here(tensor({8, 4}, DType::f64, even)), {.top_k = 1}), offsets), 8, 1e-6);
  EXPECT_NEAR(balance_loss_of(route(here(tensor({8, 4}, DType::f64, one)), {.top_k = 1}), offsets), 8 * 4,
              1e-6);
}

// How often an expert was chosen is a constant; the scores carry the gradient.
TEST_P(BalanceLoss, BackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor offsets = indices64({3}, {0, 4, 9});
  for (const Scores scores : kScores) {
    Routing routing = route(here(random.tensor({9, 5}, DType::f64)), {.scores = scores, .top_k = 2});
    const Tensor scores_TE = routing.scores_TE.to(kCpu);
    const auto loss = [&] {
      routing.scores_TE = here(scores_TE);
      return 0.3 * balance_loss_of(routing, offsets);
    };
    const Values numeric = numeric_gradient(scores_TE, loss);
    routing.scores_TE = here(scores_TE);
    expect_gradient(values(balance_loss_backward(routing, offsets, balance_counts(routing, offsets), 0.3)),
                    numeric, "scores");
  }
}

}  // namespace
}  // namespace phalanx::test
