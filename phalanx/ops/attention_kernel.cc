#include "phalanx/ops/attention_kernel.h"

#include <cmath>
#include <limits>
#include <numbers>

#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/attention_kernel.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/exp2-inl.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/tile_product-inl.h"
#include "phalanx/ops/transpose-inl.h"

// Lanes are queries: scores are held as Sᵀ [keys, queries], so that maxima, sums and the scaling of softmax
// need no reduction across lanes, and neither K nor V is ever transposed: their elements are the products'
// scalars. Only blocks of q, dy (in) and y, dq (out) are. Scores are in units of ln 2: p = 2^(s − max).
//
// Key blocks are aligned with query blocks. All before the queries' own are seen whole; in their own, the
// edge, sub-block e of kEdge keys is seen by the vectors of queries from e · kEdge on, in part where they
// overlap.

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

using attention_kernel::KeyRange;
using attention_kernel::QueryBlock;
using attention_kernel::Shape;

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

template <class T>
struct ForwardScratch {
  Matrix<T> q;  // [d, queries], scaled
  Matrix<T> y;  // [d, queries], not yet divided by the sums
  Matrix<T> p;  // [keys, queries]
  T* max;       // [queries] of the scores so far
  T* sum;       // [queries] of 2^(score − max)
  T* factor;    // [queries]
};

template <class T>
ForwardScratch<T> carve_forward(T* at, int64_t head_dim) {
  const auto take = [&](int64_t rows) {
    const Matrix<T> m = {at, kWidth};
    at += rows * kWidth;
    return m;
  };
  return {take(head_dim), take(head_dim), take(kWidth), take(1).data, take(1).data, take(1).data};
}

/// Scores of vector v to probabilities, in units of the new maximum, which the sums and what was summed
/// before take on.
template <class T>
HWY_INLINE void online_softmax(const Tile<T>& tile, int64_t v, int64_t head_dim, bool first,
                               const ForwardScratch<T>& s) {
  const Lanes<T> d;
  const int64_t column = v * lanes<T>();
  const int64_t seen = tile.seen(v);
  T* const p = s.p.data + column;
  for (int64_t j = tile.whole(v); j < seen; ++j) {
    const auto none = hn::Set(d, -std::numeric_limits<T>::infinity());
    hn::Store(hn::IfThenElse(sees(d, v, j), hn::Load(d, p + j * kWidth), none), d, p + j * kWidth);
  }
  const auto before = first ? hn::Set(d, -std::numeric_limits<T>::infinity()) : hn::Load(d, s.max + column);
  auto max0 = before;
  auto max1 = before;
  int64_t j = 0;
  for (; j + 2 <= seen; j += 2) {
    max0 = hn::Max(max0, hn::Load(d, p + j * kWidth));
    max1 = hn::Max(max1, hn::Load(d, p + (j + 1) * kWidth));
  }
  if (j < seen) max0 = hn::Max(max0, hn::Load(d, p + j * kWidth));
  const auto max = hn::Max(max0, max1);
  hn::Store(max, d, s.max + column);
  auto sum = hn::Zero(d);
  for (j = 0; j < seen; ++j) {
    const auto e = exp2_of_negative(d, hn::Sub(hn::Load(d, p + j * kWidth), max));
    hn::Store(e, d, p + j * kWidth);
    sum = hn::Add(sum, e);
  }
  if (!first) {
    const auto shrink = exp2_of_negative(d, hn::Sub(before, max));
    sum = hn::MulAdd(shrink, hn::Load(d, s.sum + column), sum);
    if (!hn::AllTrue(d, hn::Eq(shrink, hn::Set(d, T{1})))) {
      for (int64_t c = 0; c < head_dim; ++c) {
        T* y = s.y.row(c) + column;
        hn::Store(hn::Mul(shrink, hn::Load(d, y)), d, y);
      }
    }
  }
  hn::Store(sum, d, s.sum + column);
}

template <class T>
void attend(const QueryBlock<T>& b, const Shape& shape, T* scratch) {
  const Lanes<T> d;
  const int64_t head_dim = shape.head_dim;
  const int64_t vectors = whole_vectors<T>(b.rows) / lanes<T>();
  const ForwardScratch<T> s = carve_forward(scratch, head_dim);
  const Matrix<const T> q = {b.q + b.first * shape.query_stride, shape.query_stride};
  rows_to_lanes<T>(b.rows, head_dim, static_cast<T>(shape.scale * std::numbers::log2e), q, s.q);
  for (int64_t key = 0; key < b.first + b.rows; key += kWidth) {
    const Tile<T> tile = {std::min(kWidth, b.first + b.rows - key), vectors, key == b.first};
    const Matrix<const T> k = {b.k + key * shape.key_stride, shape.key_stride};
    const Matrix<const T> v = {b.v + key * shape.key_stride, shape.key_stride};
    scores<T>(tile, head_dim, k, s.q, s.p);
    for (int64_t i = 0; i < vectors; ++i) online_softmax(tile, i, head_dim, key == 0, s);
    product<Side::columns>(d, Product<T>{.a = v,
                                         .b = s.p,
                                         .c = s.y,
                                         .rows = head_dim,
                                         .vectors = vectors,
                                         .depth = tile.keys,
                                         .accumulate = key > 0,
                                         .edge = tile.edge ? Edge::early_columns : Edge::none});
  }
  for (int64_t i = 0; i < b.rows; i += lanes<T>()) {
    hn::Store(hn::Div(hn::Set(d, T{1}), hn::Load(d, s.sum + i)), d, s.factor + i);
  }
  for (int64_t i = 0; i < b.rows; ++i) {
    b.log_sum_exp[(b.first + i) * shape.heads] = (s.max[i] + std::log2(s.sum[i])) * std::numbers::ln2_v<T>;
  }
  const Matrix<T> y = {b.y + b.first * shape.query_stride, shape.query_stride};
  lanes_to_rows<T>(b.rows, head_dim, s.factor, s.y, y);
}

template <class T>
struct BackwardScratch {
  Matrix<T> q_lanes;   // [d, queries], scaled
  Matrix<T> dy_lanes;  // [d, queries], times scale
  Matrix<T> dq;        // [d, queries]
  Matrix<T> p;         // [keys, queries]
  Matrix<T> ds;        // [keys, queries], times scale
  T* log_sum_exp;      // [queries], in units of ln 2
  T* delta;            // [queries], Σ dy·y, times scale
  T* one;              // [queries]
  Matrix<T> q;         // [queries, d]
  Matrix<T> dy;        // [queries, d]
  Matrix<T> dk;        // [keys of the range, d]
  Matrix<T> dv;        // [keys of the range, d]
};

template <class T>
BackwardScratch<T> carve_backward(T* at, int64_t head_dim, int64_t keys) {
  const auto take = [&](int64_t rows, int64_t stride) {
    const Matrix<T> m = {at, stride};
    at += rows * stride;
    return m;
  };
  const int64_t wide = whole_vectors<T>(head_dim);
  return {take(head_dim, kWidth), take(head_dim, kWidth), take(head_dim, kWidth), take(kWidth, kWidth),
          take(kWidth, kWidth),   take(1, kWidth).data,   take(1, kWidth).data,   take(1, kWidth).data,
          take(kWidth, wide),     take(kWidth, wide),     take(keys, wide),       take(keys, wide)};
}

/// to [rows, columns] = from [rows, columns]; columns up to a whole vector become 0 where `to` has them.
template <class T>
void copy_rows(int64_t rows, int64_t columns, Matrix<const T> from, Matrix<T> to, bool to_whole_vectors) {
  const Lanes<T> d;
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(d, columns, [&](auto at, int64_t c) PHX_LANES {
      const auto x = at.load(d, from.row(r) + c);
      if (to_whole_vectors) {
        hn::Store(x, d, to.row(r) + c);
      } else {
        at.store(x, d, to.row(r) + c);
      }
    });
  }
}

/// Loads queries first … first + rows − 1 of one head. Pointers of `b` stand at that head.
template <class T>
void load_queries(const KeyRange<T>& b, int64_t first, int64_t rows, const Shape& shape,
                  const BackwardScratch<T>& s) {
  const Lanes<T> d;
  const int64_t head_dim = shape.head_dim;
  const Matrix<const T> q = {b.q + first * shape.query_stride, shape.query_stride};
  const Matrix<const T> y = {b.y + first * shape.query_stride, shape.query_stride};
  const Matrix<const T> dy = {b.dy + first * shape.query_stride, shape.query_stride};
  const T scale = static_cast<T>(shape.scale);
  rows_to_lanes<T>(rows, head_dim, static_cast<T>(shape.scale * std::numbers::log2e), q, s.q_lanes);
  rows_to_lanes<T>(rows, head_dim, scale, dy, s.dy_lanes);
  copy_rows<T>(rows, head_dim, q, s.q, true);
  copy_rows<T>(rows, head_dim, dy, s.dy, true);
  for (int64_t i = 0; i < kWidth; ++i) {
    s.log_sum_exp[i] = 0;
    s.delta[i] = 0;
    s.one[i] = 1;
    if (i >= rows) continue;
    s.log_sum_exp[i] = b.log_sum_exp[(first + i) * shape.heads] * std::numbers::log2e_v<T>;
    const T delta = sum_lanes(d, head_dim, [&](auto at, int64_t c, auto sum) PHX_LANES {
      return hn::MulAdd(at.load(d, dy.row(i) + c), at.load(d, y.row(i) + c), sum);
    });
    s.delta[i] = delta * scale;
  }
}

/// Scores and products dy·v of vector v to probabilities p and ds = p · (dy·v − delta), times scale.
template <class T>
HWY_INLINE void softmax_gradient(const Tile<T>& tile, int64_t v, const BackwardScratch<T>& s) {
  const Lanes<T> d;
  const int64_t column = v * lanes<T>();
  const auto log_sum_exp = hn::Load(d, s.log_sum_exp + column);
  const auto delta = hn::Load(d, s.delta + column);
  const auto step = [&](int64_t j, auto see) HWY_ATTR {
    T* p = s.p.row(j) + column;
    T* ds = s.ds.row(j) + column;
    const auto e = see(exp2_of_negative(d, hn::Sub(hn::Load(d, p), log_sum_exp)));
    hn::Store(e, d, p);
    hn::Store(hn::Mul(e, hn::Sub(hn::Load(d, ds), delta)), d, ds);
  };
  const int64_t whole = std::min(tile.whole(v), tile.keys);
  for (int64_t j = 0; j < whole; ++j) step(j, [](auto e) HWY_ATTR { return e; });
  for (int64_t j = whole; j < tile.seen(v); ++j) {
    step(j, [&](auto e) HWY_ATTR { return hn::IfThenElseZero(sees(d, v, j), e); });
  }
}

/// The key block at `key` against the queries loaded.
template <class T>
void backward_tile(const KeyRange<T>& b, const Tile<T>& tile, int64_t key, int64_t queries, bool first_touch,
                   const Shape& shape, const BackwardScratch<T>& s) {
  const Lanes<T> d;
  const int64_t head_dim = shape.head_dim;
  const Matrix<const T> k = {b.k + key * shape.key_stride, shape.key_stride};
  const Matrix<const T> v = {b.v + key * shape.key_stride, shape.key_stride};
  scores<T>(tile, head_dim, k, s.q_lanes, s.p);
  scores<T>(tile, head_dim, v, s.dy_lanes, s.ds);
  for (int64_t i = 0; i < tile.vectors; ++i) softmax_gradient(tile, i, s);
  const auto add_to_keys = [&](Matrix<const T> a, Matrix<const T> rows, Matrix<T> sums) HWY_ATTR {
    product<Side::rows>(d, Product<T>{.a = a,
                                      .b = rows,
                                      .c = sums.from(key - b.begin, 0),
                                      .rows = tile.keys,
                                      .vectors = whole_vectors<T>(head_dim) / lanes<T>(),
                                      .depth = queries,
                                      .accumulate = !first_touch,
                                      .edge = tile.edge ? Edge::late_rows : Edge::none});
  };
  add_to_keys(s.p, s.dy, s.dv);
  add_to_keys(s.ds, s.q, s.dk);
  product<Side::columns>(d, Product<T>{.a = k,
                                       .b = s.ds,
                                       .c = s.dq,
                                       .rows = head_dim,
                                       .vectors = tile.vectors,
                                       .depth = tile.keys,
                                       .accumulate = key > b.begin,
                                       .edge = tile.edge ? Edge::early_columns : Edge::none});
}

template <class T>
void attend_backward(const KeyRange<T>& range, const Shape& shape, T* scratch) {
  const int64_t head_dim = shape.head_dim;
  const BackwardScratch<T> s = carve_backward(scratch, head_dim, range.end - range.begin);
  KeyRange<T> b = range;  // walks over the heads
  for (int64_t head = 0; head < range.group; ++head) {
    for (int64_t first = range.begin; first < range.n; first += kWidth) {
      const int64_t rows = std::min(kWidth, range.n - first);
      load_queries(b, first, rows, shape, s);
      for (int64_t key = range.begin; key < std::min(range.end, first + rows); key += kWidth) {
        const Tile<T> tile = {std::min(kWidth, range.n - key), whole_vectors<T>(rows) / lanes<T>(),
                              key == first};
        backward_tile(b, tile, key, rows, head == 0 && tile.edge, shape, s);
      }
      const Matrix<T> dq = {b.dq + (first - range.begin) * shape.query_stride, shape.query_stride};
      lanes_to_rows<T>(rows, head_dim, s.one, s.dq, dq);
    }
    b.q += head_dim;
    b.y += head_dim;
    b.dy += head_dim;
    b.dq += head_dim;
    b.log_sum_exp += 1;
  }
  const auto copy_out = [&](Matrix<const T> from, T* to) {
    copy_rows<T>(range.end - range.begin, head_dim, from,
                 {to + range.begin * shape.key_stride, shape.key_stride}, false);
  };
  copy_out(s.dk, range.dk);
  copy_out(s.dv, range.dv);
}

void forward_f32(const QueryBlock<float>& b, const Shape& shape, float* scratch) {
  attend(b, shape, scratch);
}
void forward_f64(const QueryBlock<double>& b, const Shape& shape, double* scratch) {
  attend(b, shape, scratch);
}
void backward_f32(const KeyRange<float>& b, const Shape& shape, float* scratch) {
  attend_backward(b, shape, scratch);
}
void backward_f64(const KeyRange<double>& b, const Shape& shape, double* scratch) {
  attend_backward(b, shape, scratch);
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {

HWY_EXPORT(forward_f32);
HWY_EXPORT(forward_f64);
HWY_EXPORT(backward_f32);
HWY_EXPORT(backward_f64);

namespace attention_kernel {

// A row of whole vectors, for the widest vectors there are.
int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

int64_t forward_scratch(int64_t head_dim) { return kBlockRows * (2 * head_dim + kBlockRows + 3); }

int64_t backward_scratch(int64_t head_dim, int64_t keys) {
  return kBlockRows * (3 * head_dim + 2 * kBlockRows + 3) + 2 * (kBlockRows + keys) * padded(head_dim);
}

void forward(const QueryBlock<float>& b, const Shape& shape, float* scratch) {
  HWY_DYNAMIC_DISPATCH(forward_f32)(b, shape, scratch);
}
void forward(const QueryBlock<double>& b, const Shape& shape, double* scratch) {
  HWY_DYNAMIC_DISPATCH(forward_f64)(b, shape, scratch);
}
void backward(const KeyRange<float>& b, const Shape& shape, float* scratch) {
  HWY_DYNAMIC_DISPATCH(backward_f32)(b, shape, scratch);
}
void backward(const KeyRange<double>& b, const Shape& shape, double* scratch) {
  HWY_DYNAMIC_DISPATCH(backward_f64)(b, shape, scratch);
}

}  // namespace attention_kernel
}  // namespace phalanx
#endif
