#include "phalanx/ops/swiglu.h"

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/swiglu.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

template <class T>
void forward(const Rows& gate_up, const Rows& y) {
  const int64_t f = y.data.dim(1);
  const T* const in = gate_up.data.data<T>();
  T* const out = y.data.data<T>();
  for_rows<T>(gate_up.count(), 2 * f, [&](auto d, int64_t r) HWY_ATTR {
    const T* gate = in + r * 2 * f;
    const T* up = gate + f;
    T* to = out + r * f;
    for_lanes(d, f, [&](auto at, int64_t i) PHX_LANES {
      const auto x = at.load(d, gate + i);
      at.store(hn::Mul(hn::Mul(x, logistic(d, x)), at.load(d, up + i)), d, to + i);
    });
  });
}

// With s the logistic function of gate: silu'(gate) = s + gate·s·(1 − s).
template <class T>
void backward(const Rows& dy, const Rows& gate_up, const Rows& dx) {
  const int64_t f = dy.data.dim(1);
  const T* const gd = dy.data.data<T>();
  const T* const in = gate_up.data.data<T>();
  T* const out = dx.data.data<T>();
  for_rows<T>(gate_up.count(), 2 * f, [&](auto d, int64_t r) HWY_ATTR {
    const T* gate = in + r * 2 * f;
    const T* up = gate + f;
    const T* g = gd + r * f;
    T* dgate = out + r * 2 * f;
    T* dup = dgate + f;
    for_lanes(d, f, [&](auto at, int64_t i) PHX_LANES {
      const auto x = at.load(d, gate + i);
      const auto gi = at.load(d, g + i);
      const auto s = logistic(d, x);
      const auto silu = hn::Mul(x, s);
      const auto slope = hn::MulAdd(silu, hn::Sub(hn::Set(d, T{1}), s), s);
      at.store(hn::Mul(hn::Mul(gi, at.load(d, up + i)), slope), d, dgate + i);
      at.store(hn::Mul(gi, silu), d, dup + i);
    });
  });
}

template <class T>
void weighted_backward(const Rows& dy, const Rows& gate_up, const Tensor& slots, const Tensor& weights,
                       const WeightedSwigluGradients& out) {
  const int64_t f = dy.data.dim(1);
  const T* const gd = dy.data.data<T>();
  const T* const in = gate_up.data.data<T>();
  const int64_t* const slot_of = slots.data<int64_t>();
  const T* const wd = weights.data<T>();
  T* const dxd = out.gate_up.data.data<T>();
  T* const dwd = out.weights_RK.data<T>();
  T* const yd = out.weighted_CF.data.data<T>();
  for_rows<T>(gate_up.count(), 2 * f, [&](auto d, int64_t r) HWY_ATTR {
    const T* gate = in + r * 2 * f;
    const T* up = gate + f;
    const T* g = gd + r * f;
    T* dgate = dxd + r * 2 * f;
    T* dup = dgate + f;
    T* y = yd + r * f;
    const auto w = hn::Set(d, wd[slot_of[r]]);
    dwd[slot_of[r]] = sum_lanes(d, f, [&](auto at, int64_t i, auto acc) PHX_LANES {
      const auto x = at.load(d, gate + i);
      const auto u = at.load(d, up + i);
      const auto gi = at.load(d, g + i);
      const auto wg = hn::Mul(w, gi);
      const auto s = logistic(d, x);
      const auto silu = hn::Mul(x, s);
      const auto slope = hn::MulAdd(silu, hn::Sub(hn::Set(d, T{1}), s), s);
      const auto yi = hn::Mul(silu, u);
      at.store(hn::Mul(hn::Mul(wg, u), slope), d, dgate + i);
      at.store(hn::Mul(wg, silu), d, dup + i);
      at.store(hn::Mul(w, yi), d, y + i);
      return hn::MulAdd(gi, yi, acc);
    });
  });
}

void swiglu_kernel(const Rows& gate_up, const Rows& y) {
  visit_float(y.data.dtype(), [&](auto t) { forward<decltype(t)>(gate_up, y); });
}

void swiglu_backward_kernel(const Rows& dy, const Rows& gate_up, const Rows& dx) {
  visit_float(dx.data.dtype(), [&](auto t) { backward<decltype(t)>(dy, gate_up, dx); });
}

void weighted_swiglu_backward_kernel(const Rows& dy, const Rows& gate_up, const Tensor& slots,
                                     const Tensor& weights, const WeightedSwigluGradients& out) {
  visit_float(dy.data.dtype(),
              [&](auto t) { weighted_backward<decltype(t)>(dy, gate_up, slots, weights, out); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(swiglu_kernel);
HWY_EXPORT(swiglu_backward_kernel);
HWY_EXPORT(weighted_swiglu_backward_kernel);
}  // namespace

Rows swiglu(const Rows& gate_up) {
  PHX_CHECK(gate_up.data.dim(1) % 2 == 0, "swiglu of {}: gate and up do not pair", gate_up.data.shape());
  if constexpr (kHaveCuda) {
    if (gate_up.data.on_cuda()) return cuda::swiglu(gate_up);
  }
  const Rows y = rows_like(gate_up, {0, gate_up.data.dim(1) / 2}, gate_up.data.dtype());
  const TraceSpan span(TraceKind::elementwise, "swiglu", gate_up.live_bytes() + y.live_bytes());
  HWY_DYNAMIC_DISPATCH(swiglu_kernel)(gate_up, y);
  return y;
}

Rows swiglu_backward(const Rows& dy, const Rows& gate_up) {
  if constexpr (kHaveCuda) {
    if (gate_up.data.on_cuda()) return cuda::swiglu_backward(dy, gate_up);
  }
  PHX_CHECK(dy.capacity() >= gate_up.count() && 2 * dy.data.dim(1) == gate_up.data.dim(1),
            "swiglu_backward of {} and {}", dy.data.shape(), gate_up.data.shape());
  const Rows dx = rows_like(gate_up, gate_up.data.shape(), gate_up.data.dtype());
  const TraceSpan span(TraceKind::elementwise, "swiglu_backward", dy.live_bytes() + 2 * gate_up.live_bytes());
  HWY_DYNAMIC_DISPATCH(swiglu_backward_kernel)(dy, gate_up, dx);
  return dx;
}

WeightedSwigluGradients weighted_swiglu_backward(const Rows& dy, const Rows& gate_up,
                                                 const ExpertOrder& order, const Tensor& weights) {
  PHX_CHECK(dy.capacity() >= gate_up.capacity() && 2 * dy.data.dim(1) == gate_up.data.dim(1),
            "weighted_swiglu_backward of {} and {}", dy.data.shape(), gate_up.data.shape());
  PHX_CHECK(order.slots.rows() >= gate_up.capacity() && weights.shape() == order.places.shape(),
            "weighted_swiglu_backward of {} rows, {} slots and {} weights", gate_up.capacity(),
            order.places.shape(), weights.shape());
  if constexpr (kHaveCuda) {
    if (gate_up.data.on_cuda()) return cuda::weighted_swiglu_backward(dy, gate_up, order, weights);
  }
  const WeightedSwigluGradients out = {rows_like(gate_up, gate_up.data.shape(), gate_up.data.dtype()),
                                       Tensor::zeros(weights.shape(), weights.dtype()),
                                       rows_like(gate_up, dy.data.shape(), gate_up.data.dtype())};
  const TraceSpan span(TraceKind::elementwise, "weighted_swiglu_backward", 3 * gate_up.live_bytes());
  HWY_DYNAMIC_DISPATCH(weighted_swiglu_backward_kernel)(dy, gate_up, order.slots, weights, out);
  return out;
}

}  // namespace phalanx
#endif
