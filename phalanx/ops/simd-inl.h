// Loops over rows by the vectors of one target, the last vector masked. Kernels include this once for each
// target (Highway's foreach_target); `hn` is Highway for that target.
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "phalanx/base/parallel_for.h"
#include "phalanx/ops/blocks.h"
#include "phalanx/ops/simd_targets.h"
#include "phalanx/tensor/tensor.h"

#if defined(PHALANX_OPS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_SIMD_INL_H_
#undef PHALANX_OPS_SIMD_INL_H_
#else
#define PHALANX_OPS_SIMD_INL_H_
#endif

#include "hwy/highway.h"

// Stands before the body of a lambda that computes on vectors: for this target, and inlined into its loop.
#undef PHX_LANES
#define PHX_LANES HWY_ATTR __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// A whole vector of a row.
struct Whole {
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, const hn::TFromD<D>* p) const {
    return hn::LoadU(d, p);
  }
  template <class D, class V>
  HWY_INLINE void store(V v, D d, hn::TFromD<D>* p) const {
    hn::StoreU(v, d, p);
  }
};

/// The last `n` elements of a row, fewer than a vector: other lanes read as zero and are not written. Not a
/// byte of theirs is touched: where the processor has no masks for such lanes (AVX2 has none below 4 bytes),
/// Highway's masked load reads the whole vector, which another thread may be writing, or which ends the
/// memory.
struct Rest {
  size_t n;
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, const hn::TFromD<D>* p) const {
    using T = hn::TFromD<D>;
    constexpr bool kMasked = HWY_TARGET <= HWY_AVX3 || (HWY_TARGET <= HWY_AVX2 && sizeof(T) >= 4);
    if constexpr (kMasked) {
      return hn::MaskedLoad(hn::FirstN(d, n), d, p);
    } else {
      HWY_ALIGN std::array<T, HWY_MAX_BYTES / sizeof(T)> lanes{};
      std::copy_n(p, n, lanes.data());
      return hn::Load(d, lanes.data());
    }
  }
  template <class D, class V>
  HWY_INLINE void store(V v, D d, hn::TFromD<D>* p) const {
    hn::BlendedStore(v, hn::FirstN(d, n), d, p);
  }
};

/// f(at, i) for each vector of n elements: i is its first element, and at.load and at.store reach memory.
template <class D, class F>
HWY_INLINE void for_lanes(D d, int64_t n, F f) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(Whole{}, i);
  if (i < n) f(Rest{static_cast<size_t>(n - i)}, i);
}

/// Σ over n elements. f(at, i, sum) adds the terms of one vector to `sum`; lanes behind the end do not count.
/// Four chains of sums, so that additions do not wait for each other.
template <class D, class F>
HWY_INLINE hn::TFromD<D> sum_lanes(D d, int64_t n, F f) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = sum0;
  auto sum2 = sum0;
  auto sum3 = sum0;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    sum0 = f(Whole{}, i, sum0);
    sum1 = f(Whole{}, i + lanes, sum1);
    sum2 = f(Whole{}, i + 2 * lanes, sum2);
    sum3 = f(Whole{}, i + 3 * lanes, sum3);
  }
  for (; i + lanes <= n; i += lanes) sum0 = f(Whole{}, i, sum0);
  if (i < n) {
    const Rest rest{static_cast<size_t>(n - i)};
    sum1 = hn::Add(sum1, hn::IfThenElseZero(hn::FirstN(d, rest.n), f(rest, i, hn::Zero(d))));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
}

/// The largest of n elements; −∞ of none.
template <class D>
HWY_INLINE hn::TFromD<D> max_lanes(D d, int64_t n, const hn::TFromD<D>* x) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, -std::numeric_limits<hn::TFromD<D>>::infinity());
  auto max0 = lowest;
  auto max1 = lowest;
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    max0 = hn::Max(max0, hn::LoadU(d, x + i));
    max1 = hn::Max(max1, hn::LoadU(d, x + i + lanes));
  }
  for (; i + lanes <= n; i += lanes) max0 = hn::Max(max0, hn::LoadU(d, x + i));
  if (i < n) {
    const Rest rest{static_cast<size_t>(n - i)};
    max1 = hn::Max(max1, hn::IfThenElse(hn::FirstN(d, rest.n), rest.load(d, x + i), lowest));
  }
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1)));
}

/// f(d, begin, end) for pieces of n elements, T's vectors in d.
template <class T, class F>
HWY_INLINE void for_blocks(int64_t n, F f) {
  parallel_for(n, kBlockElements,
               [&](int64_t begin, int64_t end) HWY_ATTR { f(hn::ScalableTag<T>(), begin, end); });
}

/// f(d, row) for each of `rows` rows of `width` elements, T's vectors in d.
template <class T, class F>
HWY_INLINE void for_rows(int64_t rows, int64_t width, F f) {
  parallel_for(rows, block_rows(width), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t r = begin; r < end; ++r) f(hn::ScalableTag<T>(), r);
  });
}

/// `sets` sums over rows, each [width], in an order that depends on the shape alone. f(d, row, sums) adds one
/// row's terms to sums[0] … sums[sets · width − 1]; `into` says where set s is added in the end (null:
/// nowhere).
template <class T, class F>
HWY_INLINE void sum_over_rows(int64_t rows, int64_t width, std::span<T* const> into, F f) {
  const int64_t grain = block_rows_for_sums(width);
  const int64_t blocks = (rows + grain - 1) / grain;
  const int64_t sums = width * static_cast<int64_t>(into.size());
  const Tensor partial = Tensor::empty({blocks, sums}, dtype_of<T>);
  T* const p = partial.data<T>();
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    T* mine = p + begin / grain * sums;
    std::fill_n(mine, sums, T{0});
    for (int64_t r = begin; r < end; ++r) f(hn::ScalableTag<T>(), r, mine);
  });
  for (size_t s = 0; s < into.size(); ++s) {
    if (!into[s]) continue;
    const T* from = p + static_cast<int64_t>(s) * width;
    for_blocks<T>(width, [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
      for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
        T* to = into[s] + begin + i;
        auto sum = at.load(d, to);
        for (int64_t b = 0; b < blocks; ++b) sum = hn::Add(sum, at.load(d, from + b * sums + begin + i));
        at.store(sum, d, to);
      });
    });
  }
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
