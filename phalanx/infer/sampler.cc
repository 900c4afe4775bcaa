#include "phalanx/infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/base/philox.h"
#include "phalanx/base/pooled.h"

namespace phalanx {
namespace {

PooledVector<double> logits_of(const Tensor& logits) {
  PooledVector<double> out(static_cast<size_t>(logits.numel()));
  visit_float(logits.dtype(), [&](auto t) { std::ranges::copy(logits.span<decltype(t)>(), out.begin()); });
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  bool any = false;
  for (size_t i = 0; i < out.size(); ++i) {
    if (!(out[i] < kInfinity)) {
      throw Error("the logit of token {} is {}: the model's weights are broken", i,
                  std::isnan(out[i]) ? "NaN" : "infinite");
    }
    any = any || out[i] > -kInfinity;
  }
  if (!any) throw Error("every logit is minus infinity: there is no token to choose");
  return out;
}

// The tokens that may be drawn, most likely first, with probabilities that sum to one before top-p's cut.
struct Candidates {
  PooledVector<int32_t> tokens;
  PooledVector<double> probabilities;
};

Candidates candidates_of(const PooledVector<double>& logits, const SamplerConfig& config) {
  Candidates c;
  c.tokens.resize(logits.size());
  std::iota(c.tokens.begin(), c.tokens.end(), 0);
  std::ranges::sort(c.tokens, [&](int32_t a, int32_t b) {
    const double x = logits[static_cast<size_t>(a)];
    const double y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  if (config.top_k > 0) c.tokens.resize(std::min(c.tokens.size(), static_cast<size_t>(config.top_k)));
  const double max = logits[static_cast<size_t>(c.tokens[0])];
  double sum = 0;
  for (const int32_t token : c.tokens) {
    c.probabilities.push_back(std::exp((logits[static_cast<size_t>(token)] - max) / config.temperature));
    sum += c.probabilities.back();
  }
  for (double& p : c.probabilities) p /= sum;
  return c;
}

}  // namespace

void check(const SamplerConfig& c) {
  if (!(c.temperature >= 0 && std::isfinite(c.temperature))) {
    throw Error("temperature {}: at least 0, and finite", c.temperature);
  }
  if (c.top_k < 0) throw Error("top-k {}: at least 1, or 0 for all tokens", c.top_k);
  if (!(c.top_p > 0 && c.top_p <= 1)) throw Error("top-p {}: more than 0 and at most 1", c.top_p);
}

int32_t sample(const Tensor& logits_tensor, const SamplerConfig& config, uint64_t position) {
  check(config);
  const PooledVector<double> logits = logits_of(logits_tensor);
  if (config.temperature == 0) {
    return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
  }
  const Candidates c = candidates_of(logits, config);
  size_t kept = 0;
  double mass = 0;
  while (kept < c.tokens.size() && (kept == 0 || mass < config.top_p)) mass += c.probabilities[kept++];

  double left = RandomStream(config.seed, "sample").uniform(position) * mass;
  for (size_t i = 0; i < kept; ++i) {
    left -= c.probabilities[i];
    if (left < 0) return c.tokens[i];
  }
  return c.tokens[kept - 1];
}

}  // namespace phalanx
