#include "phalanx/ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/cross_entropy.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// Elements of a row that are read twice (for the maximum, for the sum) while in the first-level cache; while
// the sum computes, the next ones come from memory.
constexpr int64_t kChunk = 2048;

struct RowSum {
  double max;
  double sum;  // Σ e^(x − max)
};

template <class T>
RowSum row_sum(const T* x, int64_t n) {
  const hn::ScalableTag<T> d;
  T max = -std::numeric_limits<T>::infinity();
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t size = std::min(kChunk, n - begin);
    const T chunk_max = max_lanes(d, size, x + begin);
    if (chunk_max > max) {
      sum *= std::exp(static_cast<double>(max) - static_cast<double>(chunk_max));
      max = chunk_max;
    }
    // Logits that are all −∞ have no maximum to subtract.
    const auto shift = hn::Set(d, max == -std::numeric_limits<T>::infinity() ? T{0} : max);
    sum += sum_lanes(d, size, [&](auto at, int64_t i, auto acc) PHX_LANES {
      hwy::Prefetch(x + begin + kChunk + i);
      return hn::Add(acc, exp(d, hn::Sub(at.load(d, x + begin + i), shift)));
    });
  }
  return {static_cast<double>(max), sum};
}

template <class T>
void forward(const Tensor& logits, const Tensor& targets, int64_t first, const Tensor& sums) {
  const int64_t v = logits.dim(1);
  const T* const x = logits.data<T>();
  const int32_t* const target = targets.data<int32_t>();
  double* const out = sums.data<double>();
  parallel_for(logits.rows(), block_rows(v), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t r = begin; r < end; ++r) {
      const RowSum row = row_sum(x + r * v, v);
      const int64_t local = target[r] - first;
      out[3 * r] = row.max;
      out[3 * r + 1] = row.sum;
      out[3 * r + 2] = local >= 0 && local < v ? static_cast<double>(x[r * v + local]) : 0;
    }
  });
}

template <class T>
void backward(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exps, T scale,
              int64_t first) {
  const int64_t v = logits.dim(1);
  T* const x = logits.data<T>();
  const int32_t* const target = targets.data<int32_t>();
  const T* const kept = log_sum_exps.data<T>();
  for_rows<T>(logits.rows(), v, [&](auto d, int64_t r) HWY_ATTR {
    T* row = x + r * v;
    if (target[r] == kIgnore) {
      std::fill_n(row, v, T{0});
      return;
    }
    const auto max = hn::Set(d, kept[2 * r]);
    const auto log_sum = hn::Set(d, kept[2 * r + 1]);
    const auto by = hn::Set(d, scale);
    for_lanes(d, v, [&](auto at, int64_t i) PHX_LANES {
      const auto log_p = hn::Sub(hn::Sub(at.load(d, row + i), max), log_sum);
      at.store(hn::Mul(exp(d, log_p), by), d, row + i);
    });
    const int64_t local = target[r] - first;
    if (local >= 0 && local < v) row[local] -= scale;
  });
}

void cross_entropy_part_kernel(const Tensor& logits, const Tensor& targets, int64_t first,
                               const Tensor& sums) {
  visit_float(logits.dtype(), [&](auto t) { forward<decltype(t)>(logits, targets, first, sums); });
}

void cross_entropy_backward_kernel(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exps,
                                   double scale, int64_t first) {
  visit_float(logits.dtype(), [&](auto t) {
    using T = decltype(t);
    backward<T>(logits, targets, log_sum_exps, static_cast<T>(scale), first);
  });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(cross_entropy_part_kernel);
HWY_EXPORT(cross_entropy_backward_kernel);

void check_targets(const Tensor& logits, const Tensor& targets, VocabularyPart part) {
  PHX_CHECK(targets.numel() == logits.rows(), "{} targets of {} rows", targets.numel(), logits.rows());
  if (targets.on_cuda()) return;  // the kernel looks
  const int64_t vocabulary = part.vocabulary(logits.dim(1));
  for (const int32_t target : targets.span<const int32_t>()) {
    PHX_CHECK(target == kIgnore || (target >= 0 && target < vocabulary), "target {} of a vocabulary of {}",
              target, vocabulary);
  }
}

constexpr int64_t kMergedRows = 256;  // by one task

template <class T>
double merge(const Tensor& parts_RT3, std::span<const int32_t> targets, T* log_sum_exps) {
  const auto rows = static_cast<int64_t>(targets.size());
  const auto parts = parts_RT3.span<const double>();
  PooledVector<double> losses(static_cast<size_t>((rows + kMergedRows - 1) / kMergedRows));
  parallel_for(rows, kMergedRows, [&](int64_t begin, int64_t end) {
    double loss = 0;
    for (int64_t t = begin; t < end; ++t) {
      const auto part = [&](int64_t r) { return &parts[static_cast<size_t>(3 * (r * rows + t))]; };
      double max = part(0)[0];
      for (int64_t r = 1; r < parts_RT3.dim(0); ++r) max = std::max(max, part(r)[0]);
      double sum = 0;
      double target = 0;
      for (int64_t r = 0; r < parts_RT3.dim(0); ++r) {
        const double* const p = part(r);
        sum += p[0] == max ? p[1] : p[1] * std::exp(p[0] - max);
        target += p[2];
      }
      log_sum_exps[2 * t] = static_cast<T>(max);
      log_sum_exps[2 * t + 1] = static_cast<T>(std::log(sum));
      if (targets[static_cast<size_t>(t)] != kIgnore) loss += max - target + std::log(sum);
    }
    losses[static_cast<size_t>(begin / kMergedRows)] = loss;
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}
}  // namespace

CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets) {
  if constexpr (kHaveCuda) {
    check_targets(logits, targets, {});
    if (logits.on_cuda()) return cuda::cross_entropy(logits, targets);
  }
  const Tensor part_T3 = cross_entropy_part(logits, targets, {});
  return merge_cross_entropy(part_T3.view({1, logits.rows(), 3}), targets, logits.dtype());
}

Tensor cross_entropy_part(const Tensor& logits, const Tensor& targets, VocabularyPart part) {
  check_targets(logits, targets, part);
  if constexpr (kHaveCuda) {
    if (logits.on_cuda()) return cuda::cross_entropy_part(logits, targets, part);
  }
  const Tensor sums = Tensor::empty({logits.rows(), 3}, DType::f64);
  const TraceSpan span(TraceKind::elementwise, "cross_entropy", logits.bytes());
  HWY_DYNAMIC_DISPATCH(cross_entropy_part_kernel)(logits, targets, part.first, sums);
  return sums;
}

CrossEntropy merge_cross_entropy(const Tensor& parts_RT3, const Tensor& targets, DType dtype) {
  PHX_CHECK(parts_RT3.shape().rank() == 3 && parts_RT3.dim(0) > 0 && parts_RT3.dim(1) == targets.numel() &&
                parts_RT3.dim(2) == 3,
            "parts {} of {} rows", parts_RT3.shape(), targets.numel());
  if constexpr (kHaveCuda) {
    if (parts_RT3.on_cuda()) return cuda::merge_cross_entropy(parts_RT3, targets, dtype);
  }
  const CrossEntropy out = {Tensor::empty({1}, DType::f64), Tensor::empty({targets.numel(), 2}, dtype)};
  out.loss_sum.data<double>()[0] = visit_float(dtype, [&](auto t) {
    return merge(parts_RT3, targets.span<const int32_t>(), out.log_sum_exp_T2.data<decltype(t)>());
  });
  return out;
}

void cross_entropy_backward_into(Tensor logits, const Tensor& targets, const Tensor& log_sum_exp,
                                 double scale, VocabularyPart part) {
  check_targets(logits, targets, part);
  PHX_CHECK(log_sum_exp.numel() == 2 * logits.rows(), "log-sum-exp {} of logits {}", log_sum_exp.shape(),
            logits.shape());
  if constexpr (kHaveCuda) {
    if (logits.on_cuda()) return cuda::cross_entropy_backward_into(logits, targets, log_sum_exp, scale, part);
  }
  const TraceSpan span(TraceKind::elementwise, "cross_entropy_backward_into", 2 * logits.bytes());
  HWY_DYNAMIC_DISPATCH(cross_entropy_backward_kernel)(logits, targets, log_sum_exp, scale, part.first);
}

Tensor cross_entropy_gradient_into(Tensor logits, const Tensor& targets, double scale) {
  if constexpr (kHaveCuda) {
    check_targets(logits, targets, {});
    if (logits.on_cuda()) return cuda::cross_entropy_gradient_into(logits, targets, scale);
  }
  const CrossEntropy loss = cross_entropy(logits, targets);
  cross_entropy_backward_into(std::move(logits), targets, loss.log_sum_exp_T2, scale);
  return loss.loss_sum;
}

}  // namespace phalanx
#endif
