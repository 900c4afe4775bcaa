#include "phalanx/ops/bias.h"

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/bias.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

template <class T>
void forward(const Tensor& y, const Tensor& b) {
  const int64_t width = y.dim(1);
  T* const yd = y.data<T>();
  const T* const bd = b.data<T>();
  for_rows<T>(y.rows(), width, [&](auto d, int64_t r) HWY_ATTR {
    T* row = yd + r * width;
    for_lanes(d, width, [&](auto at, int64_t i) PHX_LANES {
      at.store(hn::Add(at.load(d, row + i), at.load(d, bd + i)), d, row + i);
    });
  });
}

template <class T>
void backward(const Tensor& db, const Tensor& dy) {
  const int64_t width = dy.dim(1);
  const T* const gd = dy.data<T>();
  sum_over_rows<T>(dy.rows(), width, {{db.data<T>()}}, [&](auto d, int64_t r, T* sum) HWY_ATTR {
    const T* g = gd + r * width;
    for_lanes(d, width, [&](auto at, int64_t i) PHX_LANES {
      at.store(hn::Add(at.load(d, sum + i), at.load(d, g + i)), d, sum + i);
    });
  });
}

void bias_kernel(const Tensor& y, const Tensor& b) {
  visit_float(y.dtype(), [&](auto t) { forward<decltype(t)>(y, b); });
}

void bias_backward_kernel(const Tensor& db, const Tensor& dy) {
  visit_float(dy.dtype(), [&](auto t) { backward<decltype(t)>(db, dy); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(bias_kernel);
HWY_EXPORT(bias_backward_kernel);
}  // namespace

void add_bias_into(Tensor y, const Tensor& b) {
  PHX_CHECK(b.numel() == y.dim(1), "bias of {} on {}", b.shape(), y.shape());
  if constexpr (kHaveCuda) {
    if (y.on_cuda()) return cuda::add_bias_into(y, b);
  }
  const TraceSpan span(TraceKind::elementwise, "add_bias_into", 2 * y.bytes());
  HWY_DYNAMIC_DISPATCH(bias_kernel)(y, b);
}

void bias_backward_into(Tensor db, const Tensor& dy) {
  PHX_CHECK(db.numel() == dy.dim(1), "bias gradient of {} from {}", db.shape(), dy.shape());
  if constexpr (kHaveCuda) {
    if (dy.on_cuda()) return cuda::bias_backward_into(db, dy);
  }
  const TraceSpan span(TraceKind::elementwise, "bias_backward_into", dy.bytes());
  HWY_DYNAMIC_DISPATCH(bias_backward_kernel)(db, dy);
}

}  // namespace phalanx
#endif
