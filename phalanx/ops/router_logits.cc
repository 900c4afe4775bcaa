#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/route.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/router_logits.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

constexpr int64_t kRows = 16;  // of a task, over which an expert's weights stay near

template <class T>
void forward(const Tensor& x, const Tensor& w, const Tensor& logits) {
  const hn::ScalableTag<T> d;
  const int64_t width = x.dim(1);
  const int64_t experts = w.rows();
  parallel_for(x.rows(), kRows, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t e = 0; e < experts; ++e) {
      const T* const we = w.data<const T>() + e * width;
      for (int64_t r = begin; r < end; ++r) {
        const T* const xr = x.data<const T>() + r * width;
        logits.data<T>()[r * experts + e] = sum_lanes(d, width, [&](auto at, int64_t i, auto sum) PHX_LANES {
          return hn::MulAdd(at.load(d, xr + i), at.load(d, we + i), sum);
        });
      }
    }
  });
}

void router_logits_kernel(const Tensor& x, const Tensor& w, const Tensor& logits) {
  visit_float(x.dtype(), [&](auto t) { forward<decltype(t)>(x, w, logits); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(router_logits_kernel);
}  // namespace

Tensor router_logits(const Tensor& x, const Tensor& w) {
  PHX_CHECK(x.dim(1) == w.dim(1) && x.dtype() == w.dtype(), "{} by {}", x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::router_logits(x, w);
  }
  const Tensor logits = Tensor::empty({x.rows(), w.rows()}, x.dtype());
  const TraceSpan span(TraceKind::product, "router_logits", 2 * logits.numel() * x.dim(1));
  HWY_DYNAMIC_DISPATCH(router_logits_kernel)(x, w, logits);
  return logits;
}

}  // namespace phalanx
#endif
