#include "phalanx/ops/elementwise.h"

#include <numeric>

#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/elementwise.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

template <class T>
void add_all(const Tensor& a, const Tensor& b, const Tensor& y) {
  const T* const ad = a.data<T>();
  const T* const bd = b.data<T>();
  T* const yd = y.data<T>();
  for_blocks<T>(y.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
      const int64_t j = begin + i;
      at.store(hn::Add(at.load(d, ad + j), at.load(d, bd + j)), d, yd + j);
    });
  });
}

template <class T>
void scale_all(const Tensor& x, double factor) {
  T* const xd = x.data<T>();
  for_blocks<T>(x.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    const auto by = hn::Set(d, static_cast<T>(factor));
    for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
      at.store(hn::Mul(at.load(d, xd + begin + i), by), d, xd + begin + i);
    });
  });
}

// The squares of n elements, in f64.
double squares(const double* x, int64_t n) {
  const hn::ScalableTag<double> d;
  return sum_lanes(d, n, [&](auto at, int64_t i, auto acc) PHX_LANES {
    const auto v = at.load(d, x + i);
    return hn::MulAdd(v, v, acc);
  });
}

double squares(const float* x, int64_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;  // as many f32 as there are f64 in a vector
  return sum_lanes(d, n, [&](auto at, int64_t i, auto acc) PHX_LANES {
    const auto v = hn::PromoteTo(d, at.load(half, x + i));
    return hn::MulAdd(v, v, acc);
  });
}

double squares_kernel(const Tensor& x) {
  const int64_t blocks = (x.numel() + kBlockElements - 1) / kBlockElements;
  PooledVector<double> partial(static_cast<size_t>(blocks));
  visit_float(x.dtype(), [&](auto t) {
    using T = decltype(t);
    const T* const xd = x.data<T>();
    for_blocks<T>(x.numel(), [&](auto, int64_t begin, int64_t end) HWY_ATTR {
      partial[static_cast<size_t>(begin / kBlockElements)] = squares(xd + begin, end - begin);
    });
  });
  return std::accumulate(partial.begin(), partial.end(), 0.0);
}

void add_kernel(const Tensor& a, const Tensor& b, const Tensor& y) {
  visit_float(y.dtype(), [&](auto t) { add_all<decltype(t)>(a, b, y); });
}

void scale_kernel(const Tensor& x, double factor) {
  visit_float(x.dtype(), [&](auto t) { scale_all<decltype(t)>(x, factor); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(add_kernel);
HWY_EXPORT(scale_kernel);
HWY_EXPORT(squares_kernel);
}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  PHX_CHECK(a.shape() == b.shape(), "add of {} and {}", a.shape(), b.shape());
  if constexpr (kHaveCuda) {
    if (a.on_cuda()) return cuda::add(a, b);
  }
  const Tensor y = Tensor::empty(a.shape(), a.dtype());
  const TraceSpan span(TraceKind::elementwise, "add", 3 * y.bytes());
  HWY_DYNAMIC_DISPATCH(add_kernel)(a, b, y);
  return y;
}

void add_into(Tensor x, const Tensor& y) {
  PHX_CHECK(x.shape() == y.shape(), "{} added into {}", y.shape(), x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::add_into(x, y);
  }
  const TraceSpan span(TraceKind::elementwise, "add_into", 3 * x.bytes());
  HWY_DYNAMIC_DISPATCH(add_kernel)(x, y, x);
}

void accumulate(Tensor& sum, const Tensor& x) {
  if (sum.defined()) {
    add_into(sum, x);
  } else {
    sum = x;
  }
}

void scale_into(Tensor x, double factor) {
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::scale_into(x, factor);
  }
  const TraceSpan span(TraceKind::elementwise, "scale_into", 2 * x.bytes());
  HWY_DYNAMIC_DISPATCH(scale_kernel)(x, factor);
}

Tensor sum_of_squares(const Tensor& x) {
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::sum_of_squares(x);
  }
  const TraceSpan span(TraceKind::elementwise, "sum_of_squares", x.bytes());
  const double sum = HWY_DYNAMIC_DISPATCH(squares_kernel)(x);
  return Tensor::of(Shape{1}, std::span<const double>(&sum, 1));
}

}  // namespace phalanx
#endif
