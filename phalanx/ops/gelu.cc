#include "phalanx/ops/gelu.h"

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/gelu.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// x · logistic(2·√(2/π)·(x + 0.044715·x³)), the same function without a difference that cancels.
constexpr double kSlope = 1.5957691216057308;  // 2·√(2/π)
constexpr double kCube = 0.044715;

template <class D, class V>
HWY_INLINE V tanh_logistic(D d, V x) {
  using T = hn::TFromD<D>;
  const V slope = hn::Set(d, static_cast<T>(kSlope));
  const V inner = hn::MulAdd(hn::Mul(hn::Set(d, static_cast<T>(kSlope * kCube)), x), x, slope);
  return logistic(d, hn::Mul(x, inner));
}

template <class T>
void forward(const Tensor& x, Gelu kind, const Tensor& y) {
  const T* const xd = x.data<T>();
  T* const yd = y.data<T>();
  for_blocks<T>(x.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    const T* in = xd + begin;
    T* out = yd + begin;
    if (kind == Gelu::erf) {
      for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
        const auto v = at.load(d, in + i);
        at.store(hn::Mul(v, normal(d, v).cdf), d, out + i);
      });
    } else {
      for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
        const auto v = at.load(d, in + i);
        at.store(hn::Mul(v, tanh_logistic(d, v)), d, out + i);
      });
    }
  });
}

// erf: Φ + x·φ. tanh, with s the logistic function's value: s + x·s·(1 − s)·slope·(1 + 3·cube·x²).
template <class T>
void backward(const Tensor& dy, const Tensor& x, Gelu kind, const Tensor& dx) {
  const T* const gd = dy.data<T>();
  const T* const xd = x.data<T>();
  T* const dxd = dx.data<T>();
  for_blocks<T>(x.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    const T* g = gd + begin;
    const T* in = xd + begin;
    T* out = dxd + begin;
    if (kind == Gelu::erf) {
      for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
        const auto v = at.load(d, in + i);
        const auto n = normal(d, v);
        at.store(hn::Mul(at.load(d, g + i), hn::MulAdd(v, n.density, n.cdf)), d, out + i);
      });
    } else {
      const auto slope = hn::Set(d, static_cast<T>(kSlope));
      const auto cube = hn::Set(d, static_cast<T>(3 * kSlope * kCube));
      for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
        const auto v = at.load(d, in + i);
        const auto s = tanh_logistic(d, v);
        // Far out s·(1 − s) is 0, whatever `inner` is as long as it is finite.
        const auto near = hn::Max(hn::Set(d, T{-60}), hn::Min(v, hn::Set(d, T{60})));
        const auto inner = hn::Mul(near, hn::MulAdd(hn::Mul(cube, near), near, slope));
        const auto rest = hn::Sub(hn::Set(d, T{1}), s);
        const auto slope_at = hn::MulAdd(hn::Mul(s, rest), inner, s);
        at.store(hn::Mul(at.load(d, g + i), slope_at), d, out + i);
      });
    }
  });
}

void gelu_kernel(const Tensor& x, Gelu kind, const Tensor& y) {
  visit_float(x.dtype(), [&](auto t) { forward<decltype(t)>(x, kind, y); });
}

void gelu_backward_kernel(const Tensor& dy, const Tensor& x, Gelu kind, const Tensor& dx) {
  visit_float(x.dtype(), [&](auto t) { backward<decltype(t)>(dy, x, kind, dx); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(gelu_kernel);
HWY_EXPORT(gelu_backward_kernel);
}  // namespace

Tensor gelu(const Tensor& x, Gelu kind) {
  const Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  gelu_into(y, x, kind);
  return y;
}

Tensor gelu_backward(const Tensor& dy, const Tensor& x, Gelu kind) {
  const Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  gelu_backward_into(dx, dy, x, kind);
  return dx;
}

void gelu_into(Tensor y, const Tensor& x, Gelu kind) {
  PHX_CHECK(y.shape() == x.shape(), "gelu_into {} of {}", y.shape(), x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::gelu_into(y, x, kind);
  }
  const TraceSpan span(TraceKind::elementwise, "gelu", 2 * x.bytes());
  HWY_DYNAMIC_DISPATCH(gelu_kernel)(x, kind, y);
}

void gelu_backward_into(Tensor dx, const Tensor& dy, const Tensor& x, Gelu kind) {
  PHX_CHECK(dy.shape() == x.shape() && dx.shape() == x.shape(), "gelu_backward_into {} of {} and {}",
            dx.shape(), dy.shape(), x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::gelu_backward_into(dx, dy, x, kind);
  }
  const TraceSpan span(TraceKind::elementwise, "gelu_backward", 3 * x.bytes());
  HWY_DYNAMIC_DISPATCH(gelu_backward_kernel)(dy, x, kind, dx);
}

}  // namespace phalanx
#endif
