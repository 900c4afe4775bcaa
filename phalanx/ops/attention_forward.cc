#include <cmath>
#include <limits>
#include <numbers>

#include "phalanx/ops/attention_kernel.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/attention_forward.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

using attention_kernel::QueryBlock;
using attention_kernel::Shape;

template <class T>
struct ForwardScratch {
  Matrix<T> q;  // [d, queries], scaled
  Matrix<T> y;  // [e, queries], not yet divided by the sums
  Matrix<T> p;  // [keys, queries]
  T* max;       // [queries] of the scores so far
  T* sum;       // [queries] of 2^(score − max)
  T* factor;    // [queries]
};

template <class T>
ForwardScratch<T> carve_forward(T* at, const Shape& shape) {
  const auto take = [&](int64_t rows) {
    const Matrix<T> m = {at, kWidth};
    at += rows * kWidth;
    return m;
  };
  return {take(shape.head_dim), take(shape.value_dim), take(kWidth),
          take(1).data,         take(1).data,          take(1).data};
}

/// Scores of vector v to probabilities, in units of the new maximum, which the sums and what was summed
/// before take on.
template <class T>
HWY_INLINE void online_softmax(const Tile<T>& tile, int64_t v, int64_t value_dim, bool first,
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
      for (int64_t c = 0; c < value_dim; ++c) {
        T* y = s.y.row(c) + column;
        hn::Store(hn::Mul(shrink, hn::Load(d, y)), d, y);
      }
    }
  }
  hn::Store(sum, d, s.sum + column);
}

/// Goes on from what other keys gave: their weights sum to one at their log-sum-exp.
template <class T>
void resume(const QueryBlock<T>& b, const Shape& shape, const ForwardScratch<T>& s) {
  rows_to_lanes<T>(b.rows, shape.value_dim, T{1}, Matrix<const T>{b.y, shape.output_stride}, s.y);
  for (int64_t i = 0; i < kWidth; ++i) {
    s.max[i] = i < b.rows ? b.log_sum_exp[i * shape.heads] * std::numbers::log2e_v<T> : T{0};
    s.sum[i] = 1;
  }
}

template <class T>
void attend(const QueryBlock<T>& b, const Shape& shape, T* scratch) {
  const Lanes<T> d;
  const auto [head_dim, value_dim] = std::pair(shape.head_dim, shape.value_dim);
  const int64_t vectors = whole_vectors<T>(b.rows) / lanes<T>();
  const ForwardScratch<T> s = carve_forward(scratch, shape);
  const Matrix<const T> q = {b.q, shape.query_stride};
  rows_to_lanes<T>(b.rows, head_dim, static_cast<T>(shape.scale * std::numbers::log2e), q, s.q);
  if (b.adds) resume(b, shape, s);
  for (int64_t key = 0; key < b.keys; key += kWidth) {
    const Tile<T> tile = {std::min(kWidth, b.keys - key), vectors, b.causal && key == b.keys - b.rows};
    const bool first = key == 0 && !b.adds;
    const Matrix<const T> k = {b.k + key * shape.key_stride, shape.key_stride};
    const Matrix<const T> v = {b.v + key * shape.value_stride, shape.value_stride};
    scores<T>(tile, head_dim, k, s.q, s.p);
    for (int64_t i = 0; i < vectors; ++i) online_softmax(tile, i, value_dim, first, s);
    product<Side::columns>(d, Product<T>{.a = v,
                                         .b = s.p,
                                         .c = s.y,
                                         .rows = value_dim,
                                         .vectors = vectors,
                                         .depth = tile.keys,
                                         .accumulate = !first,
                                         .edge = tile.edge ? Edge::early_columns : Edge::none});
  }
  for (int64_t i = 0; i < b.rows; i += lanes<T>()) {
    hn::Store(hn::Div(hn::Set(d, T{1}), hn::Load(d, s.sum + i)), d, s.factor + i);
  }
  for (int64_t i = 0; i < b.rows; ++i) {
    b.log_sum_exp[i * shape.heads] = (s.max[i] + std::log2(s.sum[i])) * std::numbers::ln2_v<T>;
  }
  const Matrix<T> y = {b.y, shape.output_stride};
  lanes_to_rows<T>(b.rows, value_dim, s.factor, s.y, y);
}

void forward_f32(const QueryBlock<float>& b, const Shape& shape, float* scratch) {
  attend(b, shape, scratch);
}
void forward_f64(const QueryBlock<double>& b, const Shape& shape, double* scratch) {
  attend(b, shape, scratch);
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {

HWY_EXPORT(forward_f32);
HWY_EXPORT(forward_f64);

namespace attention_kernel {

int64_t forward_scratch(const Shape& shape) {
  return kBlockRows * (shape.head_dim + shape.value_dim + kBlockRows + 3);
}

void forward(const QueryBlock<float>& b, const Shape& shape, float* scratch) {
  HWY_DYNAMIC_DISPATCH(forward_f32)(b, shape, scratch);
}
void forward(const QueryBlock<double>& b, const Shape& shape, double* scratch) {
  HWY_DYNAMIC_DISPATCH(forward_f64)(b, shape, scratch);
}

}  // namespace attention_kernel
}  // namespace phalanx
#endif
