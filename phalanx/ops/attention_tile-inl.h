// Lanes are queries: scores are held as Sᵀ [keys, queries], so that maxima, sums and the scaling of softmax
// need no reduction across lanes, and neither K nor V is ever transposed: their elements are the products'
// scalars. Only blocks of q, dy (in) and y, dq (out) are. Scores are in units of ln 2: p = 2^(s − max).
//
// Key blocks are aligned with query blocks. All before the queries' own are seen whole; in their own, the
// edge, sub-block e of kEdge keys is seen by the vectors of queries from e · kEdge on, in part where they
// overlap.
// Included once for each target.
#include <algorithm>

#include "phalanx/ops/attention_kernel.h"
#include "phalanx/ops/simd_targets.h"

#if defined(PHALANX_OPS_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_ATTENTION_TILE_INL_H_
#undef PHALANX_OPS_ATTENTION_TILE_INL_H_
#else
#define PHALANX_OPS_ATTENTION_TILE_INL_H_
#endif

#include "hwy/highway.h"
#include "phalanx/ops/exp2-inl.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/tile_product-inl.h"
#include "phalanx/ops/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

constexpr int64_t kWidth = attention_kernel::kBlockRows;

template <class T>
using Lanes = hn::ScalableTag<T>;

template <class T>
int64_t lanes() {
  return static_cast<int64_t>(hn::Lanes(Lanes<T>()));
}

template <class T>
int64_t edge_step() {
  return std::max<int64_t>(lanes<T>(), kTileRows);
}

template <class T>
int64_t whole_vectors(int64_t n) {
  return (n + lanes<T>() - 1) / lanes<T>() * lanes<T>();
}

/// Keys of one block against a block of queries.
template <class T>
struct Tile {
  int64_t keys;
  int64_t vectors;  ///< of queries
  bool edge;        ///< the queries' own block

  /// Vector v of the queries sees keys 0 … seen(v) − 1, those from whole(v) on in part.
  int64_t seen(int64_t v) const {
    return edge ? std::min(keys, (v * lanes<T>() / edge_step<T>() + 1) * edge_step<T>()) : keys;
  }
  int64_t whole(int64_t v) const { return edge ? v * lanes<T>() / edge_step<T>() * edge_step<T>() : keys; }
};

/// out [keys, queries] = rows [keys, d] · columns [d, queries], where they are seen.
template <class T>
void scores(const Tile<T>& tile, int64_t head_dim, Matrix<const T> rows, Matrix<const T> columns,
            Matrix<T> out) {
  const int64_t step = tile.edge ? edge_step<T>() : tile.keys;
  for (int64_t j = 0; j < tile.keys; j += step) {
    const int64_t first = tile.edge ? j : 0;  // query
    product<Side::rows>(Lanes<T>(), Product<T>{.a = rows.from(j, 0),
                                               .b = columns.from(0, first),
                                               .c = out.from(j, first),
                                               .rows = std::min(step, tile.keys - j),
                                               .vectors = tile.vectors - first / lanes<T>(),
                                               .depth = head_dim});
  }
}

/// Lanes of query vector v that see key j.
template <class D>
HWY_INLINE auto sees(D d, int64_t v, int64_t j) {
  const auto first = v * static_cast<int64_t>(hn::Lanes(d));
  using T = hn::TFromD<D>;
  return hn::Ge(hn::Iota(d, static_cast<T>(first)), hn::Set(d, static_cast<T>(j)));
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
