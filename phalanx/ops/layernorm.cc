#include "phalanx/ops/layernorm.h"

#include <array>
#include <cmath>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/layernorm.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

struct Moments {
  double mean;
  double variance;
};

// In two passes, so that a large mean costs no digits. `share` is 1/n.
template <class T>
Moments moments(const T* x, int64_t n, double share) {
  const hn::ScalableTag<T> d;
  const T sum = sum_lanes(
      d, n, [&](auto at, int64_t i, auto acc) PHX_LANES { return hn::Add(acc, at.load(d, x + i)); });
  const double mean = static_cast<double>(sum) * share;
  const auto centre = hn::Set(d, static_cast<T>(mean));
  const T squares = sum_lanes(d, n, [&](auto at, int64_t i, auto acc) PHX_LANES {
    const auto v = hn::Sub(at.load(d, x + i), centre);
    return hn::MulAdd(v, v, acc);
  });
  if (std::isfinite(squares)) return {mean, static_cast<double>(squares) * share};
  double wide_mean = 0;  // the sums may fit where T's do not
  for (int64_t i = 0; i < n; ++i) wide_mean += static_cast<double>(x[i]) * share;
  double variance = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = static_cast<double>(x[i]) - wide_mean;
    variance += v * v * share;
  }
  return {wide_mean, variance};
}

template <class T>
void forward(const Tensor& x, const Tensor& w, const Tensor& b, double eps, const LayerNormed& out) {
  const int64_t width = x.dim(1);
  const T* const xd = x.data<T>();
  const T* const wd = w.data<T>();
  const T* const bd = b.defined() ? b.data<T>() : nullptr;
  T* const yd = out.y_TD.data<T>();
  T* const mean_d = out.mean_T.data<T>();
  T* const inv_std_d = out.inv_std_T.data<T>();
  const double share = 1 / static_cast<double>(width);
  for_rows<T>(x.rows(), width, [&](auto d, int64_t r) HWY_ATTR {
    const T* in = xd + r * width;
    T* y = yd + r * width;
    const Moments m = moments(in, width, share);
    mean_d[r] = static_cast<T>(m.mean);
    inv_std_d[r] = static_cast<T>(1 / std::sqrt(m.variance + eps));
    const auto mean = hn::Set(d, mean_d[r]);
    const auto inv = hn::Set(d, inv_std_d[r]);
    for_lanes(d, width, [&](auto at, int64_t i) PHX_LANES {
      const auto normed = hn::Mul(hn::Sub(at.load(d, in + i), mean), inv);
      const auto shift = bd ? at.load(d, bd + i) : hn::Zero(d);
      at.store(hn::MulAdd(normed, at.load(d, wd + i), shift), d, y + i);
    });
  });
}

// With n the normed row: dx = inv_std · (dy·w − mean(dy·w) − n · mean(dy·w·n)), dw = Σ dy·n, db = Σ dy.
template <class T>
void backward(const Tensor& dy, const Tensor& x, const Tensor& w, const LayerNormed& kept,
              const std::array<Tensor, 3>& dx_dw_db) {
  const int64_t width = x.dim(1);
  const T* const xd = x.data<T>();
  const T* const wd = w.data<T>();
  const T* const dyd = dy.data<T>();
  const T* const mean_d = kept.mean_T.data<T>();
  const T* const inv_std_d = kept.inv_std_T.data<T>();
  const auto& [dx, dw_D, db_D] = dx_dw_db;
  T* const dxd = dx.data<T>();
  const std::array<T*, 2> into = {dw_D.data<T>(), db_D.defined() ? db_D.data<T>() : nullptr};
  sum_over_rows<T>(x.rows(), width, into, [&](auto d, int64_t r, T* sums) HWY_ATTR {
    const T* in = xd + r * width;
    const T* g = dyd + r * width;
    T* to = dxd + r * width;
    T* dw = sums;
    T* db = sums + width;
    const auto mean = hn::Set(d, mean_d[r]);
    const auto inv = hn::Set(d, inv_std_d[r]);
    auto sum_gw = hn::Zero(d);
    const T sum_gwn = sum_lanes(d, width, [&](auto at, int64_t i, auto acc) PHX_LANES {
      const auto normed = hn::Mul(hn::Sub(at.load(d, in + i), mean), inv);
      const auto gw = hn::Mul(at.load(d, g + i), at.load(d, wd + i));  // 0 behind the end
      sum_gw = hn::Add(sum_gw, gw);
      return hn::MulAdd(gw, normed, acc);
    });
    const auto mean_gw = hn::Set(d, hn::GetLane(hn::SumOfLanes(d, sum_gw)) / static_cast<T>(width));
    const auto mean_gwn = hn::Set(d, sum_gwn / static_cast<T>(width));
    for_lanes(d, width, [&](auto at, int64_t i) PHX_LANES {
      const auto normed = hn::Mul(hn::Sub(at.load(d, in + i), mean), inv);
      const auto gi = at.load(d, g + i);
      at.store(hn::MulAdd(gi, normed, at.load(d, dw + i)), d, dw + i);
      at.store(hn::Add(gi, at.load(d, db + i)), d, db + i);
      const auto centred = hn::Sub(hn::Mul(gi, at.load(d, wd + i)), mean_gw);
      at.store(hn::Mul(inv, hn::NegMulAdd(normed, mean_gwn, centred)), d, to + i);
    });
  });
}

void layernorm_kernel(const Tensor& x, const Tensor& w, const Tensor& b, double eps, const LayerNormed& out) {
  visit_float(x.dtype(), [&](auto t) { forward<decltype(t)>(x, w, b, eps, out); });
}

void layernorm_backward_kernel(const Tensor& dy, const Tensor& x, const Tensor& w, const LayerNormed& kept,
                               const std::array<Tensor, 3>& dx_dw_db) {
  visit_float(x.dtype(), [&](auto t) { backward<decltype(t)>(dy, x, w, kept, dx_dw_db); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(layernorm_kernel);
HWY_EXPORT(layernorm_backward_kernel);

void check_width(const Tensor& x, const Tensor& vector) {
  PHX_CHECK(!vector.defined() || vector.numel() == x.dim(1), "layernorm of {} with a vector of {}", x.shape(),
            vector.shape());
}
}  // namespace

LayerNormed layernorm(const Tensor& x, const Tensor& w, const Tensor& b, double eps) {
  check_width(x, w);
  check_width(x, b);
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::layernorm(x, w, b, eps);
  }
  const LayerNormed out = {Tensor::empty(x.shape(), x.dtype()), Tensor::empty({x.rows()}, x.dtype()),
                           Tensor::empty({x.rows()}, x.dtype())};
  const TraceSpan span(TraceKind::elementwise, "layernorm", 2 * x.bytes());
  HWY_DYNAMIC_DISPATCH(layernorm_kernel)(x, w, b, eps, out);
  return out;
}

Tensor layernorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const LayerNormed& kept,
                          const LayerNormSums& sums) {
  PHX_CHECK(dy.shape() == x.shape(), "layernorm_backward of {} and {}", dy.shape(), x.shape());
  check_width(x, w);
  check_width(x, sums.dw_D);
  check_width(x, sums.db_D);
  PHX_CHECK(!sums.also_TD.defined() || sums.also_TD.shape() == x.shape(),
            "layernorm_backward of {} and also {}", x.shape(), sums.also_TD.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::layernorm_backward(dy, x, w, kept, sums);
  }
  const std::array<Tensor, 3> dx_dw_db = {Tensor::empty(x.shape(), x.dtype()), sums.dw_D, sums.db_D};
  {
    const TraceSpan span(TraceKind::elementwise, "layernorm_backward", 3 * x.bytes());
    HWY_DYNAMIC_DISPATCH(layernorm_backward_kernel)(dy, x, w, kept, dx_dw_db);
  }
  if (sums.also_TD.defined()) add_into(dx_dw_db[0], sums.also_TD);
  return dx_dw_db[0];
}

}  // namespace phalanx
#endif
