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

struct LogSum {
  double max;
  double log_sum;  // log Σ e^(x − max)
};

template <class T>
LogSum log_sum_exp(const T* x, int64_t n) {
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
  return {static_cast<double>(max), std::log(sum)};
}

template <class T>
double forward(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exps) {
  const int64_t v = logits.dim(1);
  const int64_t grain = block_rows(v);
  const T* const x = logits.data<T>();
  const int32_t* const target = targets.data<int32_t>();
  T* const kept = log_sum_exps.data<T>();
  PooledVector<double> losses(static_cast<size_t>((logits.rows() + grain - 1) / grain));
  parallel_for(logits.rows(), grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    double loss = 0;
    for (int64_t r = begin; r < end; ++r) {
      const LogSum row = log_sum_exp(x + r * v, v);
      kept[2 * r] = static_cast<T>(row.max);
      kept[2 * r + 1] = static_cast<T>(row.log_sum);
      if (target[r] != kIgnore) loss += row.max - static_cast<double>(x[r * v + target[r]]) + row.log_sum;
    }
    losses[static_cast<size_t>(begin / grain)] = loss;
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

template <class T>
void backward(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exps, T scale) {
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
    row[target[r]] -= scale;
  });
}

double cross_entropy_kernel(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exps) {
  return visit_float(logits.dtype(),
                     [&](auto t) { return forward<decltype(t)>(logits, targets, log_sum_exps); });
}

void cross_entropy_backward_kernel(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exps,
                                   double scale) {
  visit_float(logits.dtype(), [&](auto t) {
    using T = decltype(t);
    backward<T>(logits, targets, log_sum_exps, static_cast<T>(scale));
  });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(cross_entropy_kernel);
HWY_EXPORT(cross_entropy_backward_kernel);

void check_targets(const Tensor& logits, const Tensor& targets) {
  PHX_CHECK(targets.numel() == logits.rows(), "{} targets of {} rows", targets.numel(), logits.rows());
  if (targets.on_cuda()) return;  // the kernel looks
  for (const int32_t target : targets.span<const int32_t>()) {
    PHX_CHECK(target == kIgnore || (target >= 0 && target < logits.dim(1)), "target {} of a vocabulary of {}",
              target, logits.dim(1));
  }
}
}  // namespace

CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets) {
  check_targets(logits, targets);
  if constexpr (kHaveCuda) {
    if (logits.on_cuda()) return cuda::cross_entropy(logits, targets);
  }
  CrossEntropy out = {0, Tensor::empty({logits.rows(), 2}, logits.dtype())};
  const TraceSpan span(TraceKind::elementwise, "cross_entropy", logits.bytes());
  out.loss_sum = HWY_DYNAMIC_DISPATCH(cross_entropy_kernel)(logits, targets, out.log_sum_exp_T2);
  return out;
}

void cross_entropy_backward_into(Tensor logits, const Tensor& targets, const Tensor& log_sum_exp,
                                 double scale) {
  check_targets(logits, targets);
  PHX_CHECK(log_sum_exp.numel() == 2 * logits.rows(), "log-sum-exp {} of logits {}", log_sum_exp.shape(),
            logits.shape());
  if constexpr (kHaveCuda) {
    if (logits.on_cuda()) return cuda::cross_entropy_backward_into(logits, targets, log_sum_exp, scale);
  }
  const TraceSpan span(TraceKind::elementwise, "cross_entropy_backward_into", 2 * logits.bytes());
  HWY_DYNAMIC_DISPATCH(cross_entropy_backward_kernel)(logits, targets, log_sum_exp, scale);
}

}  // namespace phalanx
#endif
