#include "phalanx/ops/rmsnorm.h"

#include <cmath>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/rmsnorm.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

template <class T>
double sum_of_squares(const T* x, int64_t n) {
  const hn::ScalableTag<T> d;
  const double sum = sum_lanes(d, n, [&](auto at, int64_t i, auto acc) PHX_LANES {
    const auto v = at.load(d, x + i);
    return hn::MulAdd(v, v, acc);
  });
  if (std::isfinite(sum)) return sum;
  double wide = 0;  // the squares may fit where T's do not
  for (int64_t i = 0; i < n; ++i) wide += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return wide;
}

template <class T>
void forward(const Tensor& x, const Tensor& w, double eps, const RmsNormed& out) {
  const int64_t width = x.dim(1);
  const T* const xd = x.data<T>();
  const T* const wd = w.data<T>();
  T* const yd = out.y_TD.data<T>();
  T* const inv_rms = out.inv_rms_T.data<T>();
  for_rows<T>(x.rows(), width, [&](auto d, int64_t r) HWY_ATTR {
    const T* in = xd + r * width;
    T* y = yd + r * width;
    const double mean = sum_of_squares(in, width) / static_cast<double>(width);
    const auto inv = static_cast<T>(1 / std::sqrt(mean + eps));
    inv_rms[r] = inv;
    for_lanes(d, width, [&](auto at, int64_t i) PHX_LANES {
      const auto normed = hn::Mul(at.load(d, in + i), hn::Set(d, inv));
      at.store(hn::Mul(normed, at.load(d, wd + i)), d, y + i);
    });
  });
}

// With n = x·inv the normed row: dx = inv · (dy·w − n · mean(dy·w·n)), dw = Σ dy·n.
template <class T>
void backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms, const Tensor& dx,
              T* dw) {
  const int64_t width = x.dim(1);
  const T* const xd = x.data<T>();
  const T* const wd = w.data<T>();
  const T* const dyd = dy.data<T>();
  const T* const inv_rms_d = inv_rms.data<T>();
  T* const dxd = dx.data<T>();
  sum_over_rows<T>(x.rows(), width, {{dw}}, [&](auto d, int64_t r, T* dw_sum) HWY_ATTR {
    const T* in = xd + r * width;
    const T* g = dyd + r * width;
    T* to = dxd + r * width;
    const auto inv = hn::Set(d, inv_rms_d[r]);
    const T dot = sum_lanes(d, width, [&](auto at, int64_t i, auto acc) PHX_LANES {
      const auto normed = hn::Mul(at.load(d, in + i), inv);
      return hn::MulAdd(hn::Mul(at.load(d, g + i), at.load(d, wd + i)), normed, acc);
    });
    const auto mean = hn::Set(d, dot / static_cast<T>(width));
    for_lanes(d, width, [&](auto at, int64_t i) PHX_LANES {
      const auto normed = hn::Mul(at.load(d, in + i), inv);
      const auto gi = at.load(d, g + i);
      at.store(hn::MulAdd(gi, normed, at.load(d, dw_sum + i)), d, dw_sum + i);
      const auto centred = hn::NegMulAdd(normed, mean, hn::Mul(gi, at.load(d, wd + i)));
      at.store(hn::Mul(inv, centred), d, to + i);
    });
  });
}

void rmsnorm_kernel(const Tensor& x, const Tensor& w, double eps, const RmsNormed& out) {
  visit_float(x.dtype(), [&](auto t) { forward<decltype(t)>(x, w, eps, out); });
}

void rmsnorm_backward_kernel(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                             const Tensor& dx, const Tensor& dw) {
  visit_float(x.dtype(), [&](auto t) {
    using T = decltype(t);
    backward<T>(dy, x, w, inv_rms, dx, dw.data<T>());
  });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(rmsnorm_kernel);
HWY_EXPORT(rmsnorm_backward_kernel);
}  // namespace

RmsNormed rmsnorm(const Tensor& x, const Tensor& w, double eps) {
  PHX_CHECK(w.numel() == x.dim(1), "rmsnorm of {} by a weight of {}", x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::rmsnorm(x, w, eps);
  }
  const RmsNormed out = {Tensor::empty(x.shape(), x.dtype()), Tensor::empty({x.rows()}, x.dtype())};
  const TraceSpan span(TraceKind::elementwise, "rmsnorm", 2 * x.bytes());
  HWY_DYNAMIC_DISPATCH(rmsnorm_kernel)(x, w, eps, out);
  return out;
}

Tensor rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms, Tensor dw,
                        const Tensor& also) {
  PHX_CHECK(!also.defined() || also.shape() == x.shape(), "rmsnorm_backward of {} and also {}", x.shape(),
            also.shape());
  PHX_CHECK(dy.shape() == x.shape() && w.numel() == x.dim(1) && dw.numel() == x.dim(1),
            "rmsnorm_backward of {} and {} by a weight of {}", dy.shape(), x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::rmsnorm_backward(dy, x, w, inv_rms, dw, also);
  }
  const Tensor dx = Tensor::empty(x.shape(), x.dtype());
  {
    const TraceSpan span(TraceKind::elementwise, "rmsnorm_backward", 3 * x.bytes());
    HWY_DYNAMIC_DISPATCH(rmsnorm_backward_kernel)(dy, x, w, inv_rms, dx, dw);
  }
  if (also.defined()) add_into(dx, also);
  return dx;
}

}  // namespace phalanx
#endif
