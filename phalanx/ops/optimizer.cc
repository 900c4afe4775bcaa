#include "phalanx/ops/optimizer.h"

#include "phalanx/base/trace.h"
#include "phalanx/ops/adamw_factors.h"
#include "phalanx/ops/cast.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/optimizer.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// w ← w·(1 − lr·decay) − lr/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps), in one pass over the four arrays.
// Moments: how they are stored.
template <class T, class Moments>
void adamw(const AdamWTensors& x, Moments, const AdamWFactors<T>& f) {
  using Stored = typename Moments::Stored;
  T* const wd = x.w.data<T>();
  auto* const md = reinterpret_cast<Stored*>(x.m.raw());
  auto* const vd = reinterpret_cast<Stored*>(x.v.raw());
  const T* const gd = x.g.data<T>();
  for_blocks<T>(x.w.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
      const int64_t j = begin + i;
      const auto gi = at.load(d, gd + j);
      const auto scaled = hn::Mul(gi, hn::Set(d, f.scale));
      const auto mean =
          hn::MulAdd(hn::Set(d, f.beta1), Moments::load(at, d, md + j), hn::Mul(hn::Set(d, f.rest1), gi));
      const auto square = hn::Mul(hn::Mul(hn::Set(d, f.rest2), scaled), scaled);
      const auto variance = hn::MulAdd(hn::Set(d, f.beta2), Moments::load(at, d, vd + j), square);
      const auto root = hn::MulAdd(hn::Sqrt(variance), hn::Set(d, f.correction), hn::Set(d, f.eps));
      const auto step = hn::Div(hn::Mul(hn::Set(d, f.rate), mean), root);
      Moments::store(at, mean, d, md + j);
      Moments::store(at, variance, d, vd + j);
      at.store(hn::MulSub(at.load(d, wd + j), hn::Set(d, f.decay), step), d, wd + j);
    });
  });
}

template <class T>
void sgd(const Tensor& w, const Tensor& g, T rate) {
  T* const wd = w.data<T>();
  const T* const gd = g.data<T>();
  for_blocks<T>(w.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
      const int64_t j = begin + i;
      at.store(hn::NegMulAdd(hn::Set(d, rate), at.load(d, gd + j), at.load(d, wd + j)), d, wd + j);
    });
  });
}

void adamw_kernel(const AdamWTensors& x, double gradient_scale, const AdamWStep& step) {
  visit_float(x.w.dtype(), [&](auto t) {
    using T = decltype(t);
    const AdamWFactors<T> factors(step, gradient_scale);
    if constexpr (std::is_same_v<T, float>) {
      if (x.m.dtype() == DType::bf16) return adamw(x, Bf16(), factors);
    }
    adamw(x, Plain<T>(), factors);
  });
}

void sgd_kernel(const Tensor& w, const Tensor& g, double rate) {
  visit_float(w.dtype(), [&](auto t) { sgd(w, g, static_cast<decltype(t)>(rate)); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(adamw_kernel);
HWY_EXPORT(sgd_kernel);
}  // namespace

void adamw_into(const AdamWTensors& x, double gradient_scale, const AdamWStep& step) {
  const int64_t n = x.w.numel();
  PHX_CHECK(x.m.numel() == n && x.v.numel() == n && x.g.numel() == n, "adamw of {} with m {}, v {}, g {}",
            x.w.shape(), x.m.shape(), x.v.shape(), x.g.shape());
  const bool narrow_moments = x.m.dtype() == DType::bf16 && x.w.dtype() == DType::f32;
  PHX_CHECK(x.m.dtype() == x.v.dtype() && (narrow_moments || x.m.dtype() == x.w.dtype()),
            "adamw of {} with m of {} and v of {}", dtype_name(x.w.dtype()), dtype_name(x.m.dtype()),
            dtype_name(x.v.dtype()));
  PHX_CHECK(!x.narrow.defined() || x.narrow.numel() == n, "adamw of {} into a narrow {}", x.w.shape(),
            x.narrow.shape());
  if constexpr (kHaveCuda) {
    if (x.w.on_cuda()) return cuda::adamw_into(x, gradient_scale, step);
  }
  {
    const TraceSpan span(TraceKind::optimizer, "adamw_into", 3 * x.w.bytes() + 4 * x.m.bytes());
    HWY_DYNAMIC_DISPATCH(adamw_kernel)(x, gradient_scale, step);
  }
  if (x.narrow.defined()) narrow_into(x.narrow, x.w);
}

void sgd_into(Tensor w, const Tensor& g, double gradient_scale, double lr) {
  PHX_CHECK(g.numel() == w.numel(), "sgd of {} with {}", w.shape(), g.shape());
  if constexpr (kHaveCuda) {
    if (w.on_cuda()) return cuda::sgd_into(w, g, gradient_scale, lr);
  }
  const TraceSpan span(TraceKind::optimizer, "sgd_into", 3 * w.bytes());
  HWY_DYNAMIC_DISPATCH(sgd_kernel)(w, g, lr * gradient_scale);
}

}  // namespace phalanx
#endif
