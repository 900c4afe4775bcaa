#include <cmath>
#include <numbers>

#include "phalanx/ops/attention_kernel.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/attention_backward.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

using attention_kernel::KeyRange;
using attention_kernel::Shape;

template <class T>
struct BackwardScratch {
  Matrix<T> q_lanes;   // [d, queries], scaled
  Matrix<T> dy_lanes;  // [e, queries], times scale
  Matrix<T> dq;        // [d, queries]
  Matrix<T> p;         // [keys, queries]
  Matrix<T> ds;        // [keys, queries], times scale
  T* log_sum_exp;      // [queries], in units of ln 2
  T* delta;            // [queries], Σ dy·y, times scale
  T* one;              // [queries]
  Matrix<T> q;         // [queries, d]
  Matrix<T> dy;        // [queries, e]
  Matrix<T> dk;        // [keys of the range, d]
  Matrix<T> dv;        // [keys of the range, e]
};

template <class T>
BackwardScratch<T> carve_backward(T* at, const Shape& shape, int64_t keys) {
  const auto take = [&](int64_t rows, int64_t stride) {
    const Matrix<T> m = {at, stride};
    at += rows * stride;
    return m;
  };
  const int64_t d = whole_vectors<T>(shape.head_dim);
  const int64_t e = whole_vectors<T>(shape.value_dim);
  return {take(shape.head_dim, kWidth),
          take(shape.value_dim, kWidth),
          take(shape.head_dim, kWidth),
          take(kWidth, kWidth),
          take(kWidth, kWidth),
          take(1, kWidth).data,
          take(1, kWidth).data,
          take(1, kWidth).data,
          take(kWidth, d),
          take(kWidth, e),
          take(keys, d),
          take(keys, e)};
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

/// to [rows, columns] += from [rows, columns].
template <class T>
void add_rows(int64_t rows, int64_t columns, Matrix<const T> from, Matrix<T> to) {
  const Lanes<T> d;
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(d, columns, [&](auto at, int64_t c) PHX_LANES {
      at.store(hn::Add(at.load(d, to.row(r) + c), at.load(d, from.row(r) + c)), d, to.row(r) + c);
    });
  }
}

/// Loads queries first … first + rows − 1 of one head. Pointers of `b` stand at that head.
template <class T>
void load_queries(const KeyRange<T>& b, int64_t first, int64_t rows, const Shape& shape,
                  const BackwardScratch<T>& s) {
  const Lanes<T> d;
  const Matrix<const T> q = {b.q + first * shape.query_stride, shape.query_stride};
  const Matrix<const T> y = {b.y + first * shape.output_stride, shape.output_stride};
  const Matrix<const T> dy = {b.dy + first * shape.output_stride, shape.output_stride};
  const T scale = static_cast<T>(shape.scale);
  rows_to_lanes<T>(rows, shape.head_dim, static_cast<T>(shape.scale * std::numbers::log2e), q, s.q_lanes);
  rows_to_lanes<T>(rows, shape.value_dim, scale, dy, s.dy_lanes);
  copy_rows<T>(rows, shape.head_dim, q, s.q, true);
  copy_rows<T>(rows, shape.value_dim, dy, s.dy, true);
  for (int64_t i = 0; i < kWidth; ++i) {
    s.log_sum_exp[i] = 0;
    s.delta[i] = 0;
    s.one[i] = 1;
    if (i >= rows) continue;
    s.log_sum_exp[i] = b.log_sum_exp[(first + i) * shape.heads] * std::numbers::log2e_v<T>;
    const T delta = sum_lanes(d, shape.value_dim, [&](auto at, int64_t c, auto sum) PHX_LANES {
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
  const Matrix<const T> k = {b.k + key * shape.key_stride, shape.key_stride};
  const Matrix<const T> v = {b.v + key * shape.value_stride, shape.value_stride};
  scores<T>(tile, shape.head_dim, k, s.q_lanes, s.p);
  scores<T>(tile, shape.value_dim, v, s.dy_lanes, s.ds);
  for (int64_t i = 0; i < tile.vectors; ++i) softmax_gradient(tile, i, s);
  const auto add_to_keys = [&](Matrix<const T> a, Matrix<const T> rows, int64_t columns,
                               Matrix<T> sums) HWY_ATTR {
    product<Side::rows>(d, Product<T>{.a = a,
                                      .b = rows,
                                      .c = sums.from(key - b.begin, 0),
                                      .rows = tile.keys,
                                      .vectors = whole_vectors<T>(columns) / lanes<T>(),
                                      .depth = queries,
                                      .accumulate = !first_touch,
                                      .edge = tile.edge ? Edge::late_rows : Edge::none});
  };
  add_to_keys(s.p, s.dy, shape.value_dim, s.dv);
  add_to_keys(s.ds, s.q, shape.head_dim, s.dk);
  product<Side::columns>(d, Product<T>{.a = k,
                                       .b = s.ds,
                                       .c = s.dq,
                                       .rows = shape.head_dim,
                                       .vectors = tile.vectors,
                                       .depth = tile.keys,
                                       .accumulate = key > b.begin || b.adds_to_queries,
                                       .edge = tile.edge ? Edge::early_columns : Edge::none});
}

template <class T>
void attend_backward(const KeyRange<T>& range, const Shape& shape, T* scratch) {
  const BackwardScratch<T> s = carve_backward(scratch, shape, range.end - range.begin);
  KeyRange<T> b = range;  // walks over the heads
  for (int64_t head = 0; head < range.group; ++head) {
    for (int64_t first = range.first_query(); first < range.n; first += kWidth) {
      const int64_t rows = std::min(kWidth, range.n - first);
      const Matrix<T> dq = {b.dq + (first - range.first_query()) * shape.query_stride, shape.query_stride};
      load_queries(b, first, rows, shape, s);
      if (range.adds_to_queries) rows_to_lanes<T>(rows, shape.head_dim, T{1}, dq, s.dq);
      const int64_t seen = range.causal ? std::min(range.end, first + rows) : range.end;
      for (int64_t key = range.begin; key < seen; key += kWidth) {
        const Tile<T> tile = {std::min(kWidth, range.end - key), whole_vectors<T>(rows) / lanes<T>(),
                              range.causal && key == first};
        const bool first_touch = head == 0 && first == (range.causal ? key : 0);
        backward_tile(b, tile, key, rows, first_touch, shape, s);
      }
      lanes_to_rows<T>(rows, shape.head_dim, s.one, s.dq, dq);
    }
    b.q += shape.head_dim;
    b.y += shape.value_dim;
    b.dy += shape.value_dim;
    b.dq += shape.head_dim;
    b.log_sum_exp += 1;
  }
  const auto copy_out = [&](Matrix<const T> from, int64_t columns, T* to, int64_t stride) HWY_ATTR {
    const Matrix<T> rows = {to + range.begin * stride, stride};
    if (range.adds_to_keys) {
      add_rows<T>(range.end - range.begin, columns, from, rows);
    } else {
      copy_rows<T>(range.end - range.begin, columns, from, rows, false);
    }
  };
  copy_out(s.dk, shape.head_dim, range.dk, shape.key_stride);
  copy_out(s.dv, shape.value_dim, range.dv, shape.value_stride);
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

HWY_EXPORT(backward_f32);
HWY_EXPORT(backward_f64);

namespace attention_kernel {

int64_t backward_scratch(const Shape& shape, int64_t keys) {
  const auto padded = [](int64_t n) {
    return (n + 15) / 16 * 16;
  };  // whole vectors, for the widest there are
  return kBlockRows * (2 * shape.head_dim + shape.value_dim + 2 * kBlockRows + 3) +
         (kBlockRows + keys) * (padded(shape.head_dim) + padded(shape.value_dim));
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
