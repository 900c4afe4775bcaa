#include "phalanx/ops/cast.h"

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements

void check_shapes(const Tensor& narrow, const Tensor& wide) {
  PHX_CHECK(narrow.dtype() == DType::bf16 && narrow.shape() == wide.shape(), "{} {} for {}",
            dtype_name(narrow.dtype()), narrow.shape(), wide.shape());
}

}  // namespace

void narrow_into(Tensor y, const Tensor& x) {
  check_shapes(y, x);
  if (y.device() != x.device()) {
    const Tensor rounded = Tensor::empty(x.shape(), y.dtype(), x.device());
    narrow_into(rounded, x);
    return copy_into(y, rounded);
  }
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::narrow_into(y, x);
  }
  const TraceSpan span(TraceKind::elementwise, "narrow", x.bytes() + y.bytes());
  bf16* const to = y.data<bf16>();
  visit_float(x.dtype(), [&](auto t) {
    const auto* const from = x.data<const decltype(t)>();
    parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = bf16::from(static_cast<float>(from[i]));
    });
  });
}

void widen_into(Tensor y, const Tensor& x) {
  check_shapes(x, y);
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::widen_into(y, x);
  }
  const TraceSpan span(TraceKind::elementwise, "widen", x.bytes() + y.bytes());
  const bf16* const from = x.data<const bf16>();
  visit_float(y.dtype(), [&](auto t) {
    auto* const to = y.data<decltype(t)>();
    parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = static_cast<decltype(t)>(from[i].to_float());
    });
  });
}

}  // namespace phalanx
