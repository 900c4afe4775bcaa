#include <cmath>
#include <numeric>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/route.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/z_loss.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

template <class T>
using Tag = hn::CappedTag<T, 8>;  // experts come by the power of two

template <class T>
void forward(const Tensor& logits, const Tensor& out) {
  const int64_t experts = logits.dim(1);
  for_rows<T>(logits.rows(), experts, [&](auto, int64_t r) HWY_ATTR {
    const Tag<T> d;
    const T* const row = logits.data<const T>() + r * experts;
    const T max = max_lanes(d, experts, row);
    const auto shift = hn::Set(d, max);
    const T sum = sum_lanes(d, experts, [&](auto at, int64_t i, auto acc) PHX_LANES {
      return hn::Add(acc, exp(d, hn::Sub(at.load(d, row + i), shift)));
    });
    out.data<T>()[r] = max + std::log(sum);
  });
}

// By logit e of a row: 2 · scale · logsumexp · softmax_e.
template <class T>
void backward(const Tensor& logits, const Tensor& lse, double scale, const Tensor& dlogits) {
  const int64_t experts = logits.dim(1);
  for_rows<T>(logits.rows(), experts, [&](auto, int64_t r) HWY_ATTR {
    const Tag<T> d;
    const T* const row = logits.data<const T>() + r * experts;
    T* const grad = dlogits.data<T>() + r * experts;
    const T l = lse.data<const T>()[r];
    const auto shift = hn::Set(d, l);
    const auto factor = hn::Set(d, static_cast<T>(2 * scale) * l);
    for_lanes(d, experts, [&](auto at, int64_t i) PHX_LANES {
      const auto p = exp(d, hn::Sub(at.load(d, row + i), shift));
      at.store(hn::MulAdd(factor, p, at.load(d, grad + i)), d, grad + i);
    });
  });
}

void log_sum_exp_kernel(const Tensor& logits, const Tensor& out) {
  visit_float(logits.dtype(), [&](auto t) { forward<decltype(t)>(logits, out); });
}

void z_loss_backward_kernel(const Tensor& logits, const Tensor& lse, double scale, const Tensor& dlogits) {
  visit_float(logits.dtype(), [&](auto t) { backward<decltype(t)>(logits, lse, scale, dlogits); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(log_sum_exp_kernel);
HWY_EXPORT(z_loss_backward_kernel);
}  // namespace

Tensor log_sum_exp(const Tensor& logits) {
  if constexpr (kHaveCuda) {
    if (logits.on_cuda()) return cuda::log_sum_exp(logits);
  }
  const Tensor out = Tensor::empty({logits.rows()}, logits.dtype());
  const TraceSpan span(TraceKind::elementwise, "log_sum_exp", logits.bytes());
  HWY_DYNAMIC_DISPATCH(log_sum_exp_kernel)(logits, out);
  return out;
}

Tensor z_loss(const Tensor& lse) {
  if constexpr (kHaveCuda) {
    if (lse.on_cuda()) return cuda::z_loss(lse);
  }
  const Tensor sum = Tensor::empty({1}, DType::f64);
  visit_float(lse.dtype(), [&](auto t) {
    const auto row = lse.span<const decltype(t)>();
    const auto square = [](auto l) { return static_cast<double>(l) * static_cast<double>(l); };
    *sum.data<double>() = std::transform_reduce(row.begin(), row.end(), 0.0, std::plus<>(), square);
  });
  return sum;
}

void z_loss_backward_into(const Tensor& dlogits, const Tensor& logits, const Tensor& lse, double scale) {
  PHX_CHECK(dlogits.shape() == logits.shape() && lse.numel() == logits.rows(), "{}, {} and {}",
            dlogits.shape(), logits.shape(), lse.shape());
  if constexpr (kHaveCuda) {
    if (logits.on_cuda()) return cuda::z_loss_backward_into(dlogits, logits, lse, scale);
  }
  const TraceSpan span(TraceKind::elementwise, "z_loss_backward", 3 * logits.bytes());
  HWY_DYNAMIC_DISPATCH(z_loss_backward_kernel)(logits, lse, scale, dlogits);
}

}  // namespace phalanx
#endif
