#include <algorithm>
#include <numeric>
#include <span>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/route.h"
#include "phalanx/tensor/scratch.h"

namespace phalanx {
namespace {

// Keeps a token whose scores all vanish (sigmoid) from dividing by zero.
constexpr double kTiny = 1e-20;

// For each sequence, on some thread, calls f(b, begin, end, slope): slope[e] = E · times e was chosen / (K ·
// n), so that the sequence's loss is the sum over its n rows of Σ_e slope_e · s_e / Σ s.
template <class F>
void for_each_sequence(const Routing& routing, const Tensor& offsets, F f) {
  const int64_t k = routing.topk_idx_TK.dim(1);
  const int64_t experts = routing.scores_TE.dim(1);
  const auto o = offsets.span<const int64_t>();
  const int64_t* const idx = routing.topk_idx_TK.data<int64_t>();
  const Scratch<double> scratch(experts);
  parallel_for(static_cast<int64_t>(o.size()) - 1, 1, [&](int64_t b, int64_t) {
    const int64_t begin = o[static_cast<size_t>(b)];
    const int64_t end = o[static_cast<size_t>(b) + 1];
    const double share =
        static_cast<double>(experts) / static_cast<double>(std::max<int64_t>(k * (end - begin), 1));
    const std::span<double> slope(scratch.mine(), static_cast<size_t>(experts));
    std::ranges::fill(slope, 0);
    for (int64_t i = begin * k; i < end * k; ++i) slope[static_cast<size_t>(idx[i])] += share;
    f(b, begin, end, slope);
  });
}

struct RowSums {
  double scores;
  double dot;  // of scores and slopes
};

template <class T>
RowSums row_sums(const T* scores, std::span<const double> slope) {
  RowSums sums = {kTiny, 0};
  for (size_t e = 0; e < slope.size(); ++e) {
    sums.scores += static_cast<double>(scores[e]);
    sums.dot += static_cast<double>(scores[e]) * slope[e];
  }
  return sums;
}

}  // namespace

double balance_loss(const Routing& routing, const Tensor& offsets) {
  const int64_t experts = routing.scores_TE.dim(1);
  const TraceSpan span(TraceKind::elementwise, "balance_loss", routing.scores_TE.bytes());
  PooledVector<double> losses(static_cast<size_t>(offsets.numel() - 1));
  visit_float(routing.scores_TE.dtype(), [&](auto t) {
    const auto* const scores = routing.scores_TE.data<decltype(t)>();
    for_each_sequence(routing, offsets,
                      [&](int64_t b, int64_t begin, int64_t end, std::span<const double> slope) {
                        double& loss = losses[static_cast<size_t>(b)];
                        for (int64_t r = begin; r < end; ++r) {
                          const RowSums sums = row_sums(scores + r * experts, slope);
                          loss += sums.dot / sums.scores;
                        }
                      });
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

Tensor balance_loss_backward(const Routing& routing, const Tensor& offsets, double scale) {
  const Tensor& scores_TE = routing.scores_TE;
  const int64_t experts = scores_TE.dim(1);
  const TraceSpan span(TraceKind::elementwise, "balance_loss_backward", 2 * scores_TE.bytes());
  const Tensor dscores_TE = Tensor::zeros(scores_TE.shape(), scores_TE.dtype());
  visit_float(scores_TE.dtype(), [&](auto t) {
    using T = decltype(t);
    const T* const scores = scores_TE.data<T>();
    T* const dscores = dscores_TE.data<T>();
    for_each_sequence(
        routing, offsets, [&](int64_t, int64_t begin, int64_t end, std::span<const double> slope) {
          for (int64_t r = begin; r < end; ++r) {
            const RowSums sums = row_sums(scores + r * experts, slope);
            const double factor = scale / sums.scores;
            const double mean = sums.dot / sums.scores;
            for (size_t e = 0; e < slope.size(); ++e) {
              dscores[r * experts + static_cast<int64_t>(e)] = static_cast<T>(factor * (slope[e] - mean));
            }
          }
        });
  });
  return dscores_TE;
}

}  // namespace phalanx
