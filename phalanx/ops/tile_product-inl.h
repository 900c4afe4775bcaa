// A small matrix product held in registers, for blocks that lie in the cache: C [M, N] = or += A [M, K] · B
// [K, N]. Lanes run along N; B and C are aligned and have rows of whole vectors, so that only M and K may be
// odd. Included once for each target; needs vectors of a fixed size (x86, NEON).
#include <algorithm>
#include <cstdint>

#include "phalanx/ops/simd_targets.h"

#if defined(PHALANX_OPS_TILE_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_TILE_PRODUCT_INL_H_
#undef PHALANX_OPS_TILE_PRODUCT_INL_H_
#else
#define PHALANX_OPS_TILE_PRODUCT_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Row-major elements in borrowed memory; `stride` elements lie between rows.
template <class T>
struct Matrix {
  T* data;
  int64_t stride;

  T* row(int64_t i) const { return data + i * stride; }
  Matrix from(int64_t row, int64_t column) const { return {data + row * stride + column, stride}; }
  operator Matrix<const T>() const { return {data, stride}; }  // NOLINT: as pointers convert
};

/// How A lies in memory: its rows are rows, or its rows are columns.
enum class Side { rows, columns };

/// What a causal edge leaves out of a product.
enum class Edge {
  none,
  early_columns,  ///< vector v of N meets the first (v + 1) · Lanes steps of K only: later keys are not seen
  late_rows,      ///< row m of M meets the steps of K from m on: earlier queries do not see it
};

/// One product. `vectors` is N in vectors.
template <class T>
struct Product {
  Matrix<const T> a;
  Matrix<const T> b;
  Matrix<T> c;
  int64_t rows;
  int64_t vectors;
  int64_t depth;
  bool accumulate = false;
  Edge edge = Edge::none;
};

// Rows and vectors of the largest tile: enough sums to hide the latency of the multiply-add, and registers
// left for B.
#if HWY_TARGET <= HWY_AVX3
inline constexpr int kTileRows = 8;
#else
inline constexpr int kTileRows = 4;
#endif
inline constexpr int kTileVectors = 2;

/// Steps [begin, end) of K onto the vectors of the tile from kFirst on.
template <Side kSide, int kFirst, int kRows, int kVectors, class D, class V, class T = hn::TFromD<D>>
HWY_INLINE void tile_steps(D d, int64_t begin, int64_t end, Matrix<const T> a, Matrix<const T> b,
                           V (&sum)[kRows][kVectors]) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t k = begin; k < end; ++k) {
    V row[kVectors];
#pragma GCC unroll 8
    for (int v = kFirst; v < kVectors; ++v) row[v] = hn::Load(d, b.data + k * b.stride + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = kSide == Side::rows ? r * a.stride + k : k * a.stride + r;
      const V x = hn::Set(d, a.data[at]);
#pragma GCC unroll 8
      for (int v = kFirst; v < kVectors; ++v) sum[r][v] = hn::MulAdd(x, row[v], sum[r][v]);
    }
  }
}

/// Depth of a tile: all its vectors meet the first `all` steps, only the last one those up to `total`.
struct Depth {
  int64_t all;
  int64_t total;
};

template <Side kSide, int kRows, int kVectors, class D, class T = hn::TFromD<D>>
HWY_NOINLINE void tile(D d, Depth depth, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, bool accumulate) {
  static_assert(kVectors <= 2);
  using V = hn::Vec<D>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = accumulate ? hn::Load(d, c.row(r) + v * lanes) : hn::Zero(d);
  }
  tile_steps<kSide, 0>(d, 0, depth.all, a, b, sum);
  if constexpr (kVectors > 1) tile_steps<kSide, kVectors - 1>(d, depth.all, depth.total, a, b, sum);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::Store(sum[r][v], d, c.row(r) + v * lanes);
  }
}

/// All rows of the tile columns that start at vector `first`.
template <Side kSide, int kVectors, class D, class T = hn::TFromD<D>>
HWY_INLINE void product_columns(D d, const Product<T>& p, int64_t first) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Depth depth = {p.depth, p.depth};
  if (p.edge == Edge::early_columns) {
    depth = {std::min(p.depth, (first + 1) * lanes), std::min(p.depth, (first + kVectors) * lanes)};
  }
  const auto run = [&](auto rows, int64_t m) HWY_ATTR {
    const int64_t skip = p.edge == Edge::late_rows ? std::min(m, p.depth) : 0;
    const Matrix<const T> a = kSide == Side::rows ? p.a.from(m, skip) : p.a.from(skip, m);
    tile<kSide, decltype(rows)::value, kVectors>(d, {depth.all - skip, depth.total - skip}, a,
                                                 p.b.from(skip, first * lanes), p.c.from(m, first * lanes),
                                                 p.accumulate);
  };
  int64_t m = 0;
  for (; m + kTileRows <= p.rows; m += kTileRows) run(std::integral_constant<int, kTileRows>(), m);
  for (; m < p.rows; ++m) run(std::integral_constant<int, 1>(), m);
}

template <Side kSide, class D, class T = hn::TFromD<D>>
HWY_INLINE void product(D d, const Product<T>& p) {
  int64_t v = 0;
  for (; v + kTileVectors <= p.vectors; v += kTileVectors) product_columns<kSide, kTileVectors>(d, p, v);
  for (; v < p.vectors; ++v) product_columns<kSide, 1>(d, p, v);
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
