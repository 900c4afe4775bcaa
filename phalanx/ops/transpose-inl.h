// Transposing blocks of rows into lanes and back. Included once for each target; needs vectors of a fixed
// size.
#include <algorithm>
#include <cstdint>

#include "phalanx/ops/tile_product-inl.h"

#if defined(PHALANX_OPS_TRANSPOSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_TRANSPOSE_INL_H_
#undef PHALANX_OPS_TRANSPOSE_INL_H_
#else
#define PHALANX_OPS_TRANSPOSE_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR  // one lane, which is the block

template <class T>
inline constexpr int kBlock = 1;

template <class D>
HWY_INLINE hn::Vec<D> gather_blocks(D d, const hn::TFromD<D>* p, int64_t) {
  return hn::Load(d, p);
}
template <class D>
HWY_INLINE void scatter_blocks(hn::Vec<D> v, D d, hn::TFromD<D>* p, int64_t) {
  hn::Store(v, d, p);
}
template <class D, class V>
HWY_INLINE void transpose_blocks(D, V&) {}

#else

// A vector is a row of 128-bit blocks of kBlock elements.
template <class T>
inline constexpr int kBlock = 16 / sizeof(T);

/// Block b of the result is the block at p + b · stride.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> gather_blocks(D d, const T* p, int64_t stride) {
  if constexpr (hn::MaxLanes(D()) == kBlock<T>) {
    return hn::LoadU(d, p);
  } else {
    const hn::Half<D> half;
    const int64_t blocks = hn::MaxLanes(half) / kBlock<T>;
    return hn::Combine(d, gather_blocks(half, p + blocks * stride, stride), gather_blocks(half, p, stride));
  }
}

/// The reverse.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void scatter_blocks(hn::Vec<D> v, D d, T* p, int64_t stride) {
  if constexpr (hn::MaxLanes(D()) == kBlock<T>) {
    hn::StoreU(v, d, p);
  } else {
    const hn::Half<D> half;
    const int64_t blocks = hn::MaxLanes(half) / kBlock<T>;
    scatter_blocks(hn::LowerHalf(half, v), half, p, stride);
    scatter_blocks(hn::UpperHalf(half, v), half, p + blocks * stride, stride);
  }
}

/// Transposes kBlock × kBlock elements in each block of kBlock vectors.
template <class D, class V>
HWY_INLINE void transpose_blocks(D d, V (&v)[4]) {
  const V a = hn::InterleaveLower(d, v[0], v[2]);
  const V b = hn::InterleaveUpper(d, v[0], v[2]);
  const V c = hn::InterleaveLower(d, v[1], v[3]);
  const V e = hn::InterleaveUpper(d, v[1], v[3]);
  v[0] = hn::InterleaveLower(d, a, c);
  v[1] = hn::InterleaveUpper(d, a, c);
  v[2] = hn::InterleaveLower(d, b, e);
  v[3] = hn::InterleaveUpper(d, b, e);
}
template <class D, class V>
HWY_INLINE void transpose_blocks(D d, V (&v)[2]) {
  const V a = hn::InterleaveLower(d, v[0], v[1]);
  v[1] = hn::InterleaveUpper(d, v[0], v[1]);
  v[0] = a;
}

#endif

/// to [columns, rows up to a whole vector] = factor · from [rows, columns]ᵀ; lanes behind `rows` are 0.
template <class T>
HWY_INLINE void rows_to_lanes(int64_t rows, int64_t columns, T factor, Matrix<const T> from, Matrix<T> to) {
  const hn::ScalableTag<T> d;
  constexpr int block = kBlock<T>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto f = hn::Set(d, factor);
  for (int64_t i = 0; i < rows; i += lanes) {
    int64_t c = 0;
    for (; i + lanes <= rows && c + block <= columns; c += block) {
      hn::Vec<decltype(d)> v[block];
#pragma GCC unroll 4
      for (int r = 0; r < block; ++r) v[r] = gather_blocks(d, from.row(i + r) + c, block * from.stride);
      transpose_blocks(d, v);
#pragma GCC unroll 4
      for (int r = 0; r < block; ++r) hn::Store(hn::Mul(f, v[r]), d, to.row(c + r) + i);
    }
    for (; c < columns; ++c) {
      for (int64_t r = i; r < i + lanes; ++r) to.row(c)[r] = r < rows ? factor * from.row(r)[c] : T{0};
    }
  }
}

/// to [rows, columns] = (from [columns, rows] · factor [rows])ᵀ; from and factor have whole vectors.
template <class T>
HWY_INLINE void lanes_to_rows(int64_t rows, int64_t columns, const T* factor, Matrix<const T> from,
                              Matrix<T> to) {
  const hn::ScalableTag<T> d;
  constexpr int block = kBlock<T>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < rows; i += lanes) {
    const auto f = hn::Load(d, factor + i);
    int64_t c = 0;
    for (; i + lanes <= rows && c + block <= columns; c += block) {
      hn::Vec<decltype(d)> v[block];
#pragma GCC unroll 4
      for (int r = 0; r < block; ++r) v[r] = hn::Mul(f, hn::Load(d, from.row(c + r) + i));
      transpose_blocks(d, v);
#pragma GCC unroll 4
      for (int r = 0; r < block; ++r) scatter_blocks(v[r], d, to.row(i + r) + c, block * to.stride);
    }
    for (; c < columns; ++c) {
      for (int64_t r = i; r < std::min(i + lanes, rows); ++r) to.row(r)[c] = factor[r] * from.row(c)[r];
    }
  }
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
