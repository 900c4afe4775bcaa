#include <algorithm>
#include <numeric>
#include <span>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/route.h"
#include "phalanx/tensor/scratch.h"

namespace phalanx {
namespace {

// Keeps a token whose scores all vanish (sigmoid) from dividing by zero.
constexpr double kTiny = 1e-20;

// For each sequence, on some thread, calls f(b, begin, end, slope): slope[e] = E · times e was chosen / (K ·
// n), so that the sequence's loss is the sum over its n rows of Σ_e slope_e · s_e / Σ s.
template <class F>
void for_each_sequence(const Tensor& offsets, const Tensor& counts, F f) {
  const int64_t experts = counts.dim(1);
  const auto o = offsets.span<const int64_t>();
  PHX_CHECK(counts.dim(0) + 1 == std::ssize(o), "counts {} of {} sequences", counts.shape(), o.size() - 1);
  const Scratch<double> scratch(experts);
  parallel_for(std::ssize(o) - 1, 1, [&](int64_t b, int64_t) {
    const std::span<const double> count(counts.data<const double>() + b * experts,
                                        static_cast<size_t>(experts));
    const double chosen = std::max(std::accumulate(count.begin(), count.end(), 0.0), 1.0);
    const std::span<double> slope(scratch.mine(), static_cast<size_t>(experts));
    std::ranges::transform(count, slope.begin(),
                           [&](double n) { return static_cast<double>(experts) / chosen * n; });
    f(b, o[static_cast<size_t>(b)], o[static_cast<size_t>(b) + 1], slope);
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

Tensor balance_counts(const Routing& routing, const Tensor& offsets) {
  if constexpr (kHaveCuda) {
    if (routing.topk_idx_TK.on_cuda()) return cuda::balance_counts(routing, offsets);
  }
  const int64_t k = routing.topk_idx_TK.dim(1);
  const int64_t experts = routing.scores_TE.dim(1);
  const auto o = offsets.span<const int64_t>();
  const int64_t* const idx = routing.topk_idx_TK.data<int64_t>();
  const Tensor counts_BE = Tensor::zeros({std::ssize(o) - 1, experts}, DType::f64);
  for (size_t b = 0; b + 1 < o.size(); ++b) {
    double* const counts = counts_BE.data<double>() + static_cast<int64_t>(b) * experts;
    for (int64_t i = o[b] * k; i < o[b + 1] * k; ++i) counts[idx[i]] += 1;
  }
  return counts_BE;
}

Tensor balance_loss(const Routing& routing, const Tensor& offsets, const Tensor& counts_BE) {
  if constexpr (kHaveCuda) {
    if (routing.scores_TE.on_cuda()) return cuda::balance_loss(routing, offsets, counts_BE);
  }
  const int64_t experts = routing.scores_TE.dim(1);
  const TraceSpan span(TraceKind::elementwise, "balance_loss", routing.scores_TE.bytes());
  PooledVector<double> losses(static_cast<size_t>(offsets.numel() - 1));
  visit_float(routing.scores_TE.dtype(), [&](auto t) {
    const auto* const scores = routing.scores_TE.data<decltype(t)>();
    for_each_sequence(offsets, counts_BE,
                      [&](int64_t b, int64_t begin, int64_t end, std::span<const double> slope) {
                        double& loss = losses[static_cast<size_t>(b)];
                        for (int64_t r = begin; r < end; ++r) {
                          const RowSums sums = row_sums(scores + r * experts, slope);
                          loss += sums.dot / sums.scores;
                        }
                      });
  });
  const Tensor sum = Tensor::empty({1}, DType::f64);
  *sum.data<double>() = std::accumulate(losses.begin(), losses.end(), 0.0);
  return sum;
}

Tensor balance_loss_backward(const Routing& routing, const Tensor& offsets, const Tensor& counts_BE,
                             double scale) {
  if constexpr (kHaveCuda) {
    if (routing.scores_TE.on_cuda()) return cuda::balance_loss_backward(routing, offsets, counts_BE, scale);
  }
  const Tensor& scores_TE = routing.scores_TE;
  const int64_t experts = scores_TE.dim(1);
  const TraceSpan span(TraceKind::elementwise, "balance_loss_backward", 2 * scores_TE.bytes());
  const Tensor dscores_TE = Tensor::zeros(scores_TE.shape(), scores_TE.dtype());
  visit_float(scores_TE.dtype(), [&](auto t) {
    using T = decltype(t);
    const T* const scores = scores_TE.data<T>();
    T* const dscores = dscores_TE.data<T>();
    for_each_sequence(
        offsets, counts_BE, [&](int64_t, int64_t begin, int64_t end, std::span<const double> slope) {
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
