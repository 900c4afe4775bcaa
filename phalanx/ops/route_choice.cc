#include "phalanx/ops/route_choice.h"

#include <algorithm>
#include <limits>

namespace phalanx {
namespace {

// The least of the first `count` above the largest of the others. Reorders.
double gap_behind(std::span<double> scores, size_t count) {
  if (count >= scores.size()) return std::numeric_limits<double>::infinity();
  std::ranges::nth_element(scores, scores.begin() + static_cast<int64_t>(count), std::greater());
  return *std::ranges::min_element(scores.first(count)) - scores[count];
}

// Of one token's scores with the bias.
double margin(std::span<const double> scores, const RoutingConfig& config) {
  const auto groups = static_cast<size_t>(config.groups);
  const size_t size = scores.size() / groups;
  std::vector<double> sums;
  for (size_t g = 0; g < groups; ++g) {
    std::vector<double> group(scores.begin() + static_cast<int64_t>(g * size),
                              scores.begin() + static_cast<int64_t>((g + 1) * size));
    std::ranges::sort(group, std::greater());
    sums.push_back(size > 1 ? group[0] + group[1] : group[0]);
  }
  std::vector<double> sorted = sums;
  const double of_groups = gap_behind(sorted, static_cast<size_t>(config.top_groups));
  std::ranges::sort(sorted, std::greater());
  std::vector<double> left;
  for (size_t g = 0; g < groups; ++g) {
    if (sums[g] < sorted[static_cast<size_t>(config.top_groups) - 1]) continue;
    left.insert(left.end(), scores.begin() + static_cast<int64_t>(g * size),
                scores.begin() + static_cast<int64_t>((g + 1) * size));
  }
  return std::min(of_groups, gap_behind(left, static_cast<size_t>(config.top_k)));
}

}  // namespace

std::vector<double> choice_margins(const Routing& routing, const RoutingConfig& config,
                                   const Tensor& bias_E) {
  const Tensor scores_TE = routing.scores_TE.to(kCpu);
  const Tensor bias = bias_E.defined() ? bias_E.to(kCpu) : Tensor();
  const auto experts = static_cast<size_t>(scores_TE.dim(1));
  std::vector<double> margins;
  visit_float(scores_TE.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto scores = scores_TE.span<T>();
    for (size_t first = 0; first < scores.size(); first += experts) {
      std::vector<double> biased(scores.begin() + static_cast<int64_t>(first),
                                 scores.begin() + static_cast<int64_t>(first + experts));
      if (bias.defined()) {
        for (size_t e = 0; e < experts; ++e) biased[e] += static_cast<double>(bias.span<T>()[e]);
      }
      margins.push_back(margin(biased, config));
    }
  });
  return margins;
}

void choose_instead(const Routing& routing, int64_t t, std::span<const int64_t> experts,
                    const RoutingConfig& config) {
  copy_into(routing.topk_idx_TK.slice(t, t + 1), Tensor::of({1, std::ssize(experts)}, experts));
  const Tensor scores_E = routing.scores_TE.slice(t, t + 1).to(kCpu);
  const Tensor weights_K = Tensor::empty({1, std::ssize(experts)}, routing.weights_TK.dtype());
  visit_float(scores_E.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto scores = scores_E.span<T>();
    const auto weights = weights_K.span<T>();
    T sum = 0;
    for (const int64_t e : experts) sum += scores[static_cast<size_t>(e)];
    const T factor = static_cast<T>(config.scaling) / (config.normalise ? std::max(sum, T(1e-20)) : T{1});
    for (size_t i = 0; i < experts.size(); ++i) {
      weights[i] = scores[static_cast<size_t>(experts[i])] * factor;
    }
  });
  copy_into(routing.weights_TK.slice(t, t + 1), weights_K);
}

}  // namespace phalanx
