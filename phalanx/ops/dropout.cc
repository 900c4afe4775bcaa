#include "phalanx/ops/dropout.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/dropout.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/philox-inl.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

/// Which of a vector's draws keep their element: 32 unsigned bits ≥ threshold, compared with the sign bit
/// flipped.
template <class D>
HWY_INLINE hn::Mask<D> dropped(D d, const uint32_t* draws, uint32_t threshold) {
  using T = hn::TFromD<D>;
  const hn::RebindToSigned<D> wide;
  const hn::Rebind<int32_t, D> narrow;
  const auto bits = hn::LoadU(narrow, reinterpret_cast<const int32_t*>(draws));
  const auto flipped = hn::Xor(bits, hn::Set(narrow, std::numeric_limits<int32_t>::min()));
  const auto limit = static_cast<int32_t>(threshold ^ 0x80000000u);
  if constexpr (sizeof(T) == 4) {
    return hn::RebindMask(d, hn::Lt(flipped, hn::Set(narrow, limit)));
  } else {
    return hn::RebindMask(d, hn::Lt(hn::PromoteTo(wide, flipped), hn::Set(wide, int64_t{limit})));
  }
}

template <class T>
void forward(const Tensor& x, const Tensor& rows, const DropoutSite& site, const Tensor& y) {
  const int64_t width = x.dim(1);
  const int64_t* const row = rows.data<int64_t>();
  const uint32_t threshold = dropout_threshold(site.rate);
  const T* const xd = x.data<T>();
  T* const yd = y.data<T>();
  parallel_for(x.rows(), block_rows(width), [&](int64_t block, int64_t block_end) HWY_ATTR {
    const hn::ScalableTag<T> d;
    const auto factor = hn::Set(d, static_cast<T>(1 / (1 - site.rate)));
    Draws draws(site.stream, site.step);
    for (int64_t r = block; r < block_end; ++r) {
      for (int64_t begin = 0; begin < width; begin += Draws::kMost) {
        const int64_t size = std::min(Draws::kMost, width - begin);
        const uint32_t* const drawn = draws.draw(static_cast<uint64_t>(row[r] * width + begin), size);
        const T* in = xd + r * width + begin;
        T* out = yd + r * width + begin;
        for_lanes(d, size, [&](auto at, int64_t i) PHX_LANES {
          const auto scaled = hn::Mul(at.load(d, in + i), factor);
          at.store(hn::IfThenZeroElse(dropped(d, drawn + i, threshold), scaled), d, out + i);
        });
      }
    }
  });
}

void dropout_kernel(const Tensor& x, const Tensor& rows, const DropoutSite& site, const Tensor& y) {
  visit_float(x.dtype(), [&](auto t) { forward<decltype(t)>(x, rows, site, y); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(dropout_kernel);
}  // namespace

uint32_t dropout_threshold(double rate) {
  PHX_CHECK(rate >= 0 && rate < 1, "dropout rate {}, expected one in [0, 1)", rate);
  return static_cast<uint32_t>(std::ldexp(rate, 32));
}

Tensor dropout(const Tensor& x, const Tensor& rows, const DropoutSite& site) {
  PHX_CHECK(rows.numel() == x.rows(), "{} row numbers for {}", rows.numel(), x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::dropout(x, rows, site);
  }
  const Tensor y = Tensor::empty(x.shape(), x.dtype());
  const TraceSpan span(TraceKind::elementwise, "dropout", 2 * x.bytes());
  HWY_DYNAMIC_DISPATCH(dropout_kernel)(x, rows, site, y);
  return y;
}

}  // namespace phalanx
#endif
