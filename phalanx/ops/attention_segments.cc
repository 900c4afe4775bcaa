// Decoding: few queries, many keys. Lanes run along a head's columns, and keys stream by once for all heads
// that share them.
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/pooled.h"
#include "phalanx/ops/attention.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/attention_segments.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/exp2-inl.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

constexpr int64_t kChunk = 64;  // keys whose scores are held at once

/// Rows of one KV head of a segment that a query sees.
template <class T>
struct Seen {
  const T* k;
  const T* v;
  int64_t rows;
  int64_t k_stride;
  int64_t v_stride;
};

/// One query of one head, and its softmax so far. Scores are in units of ln 2.
template <class T>
struct Query {
  const T* q;  // [d], times scale · log2 e
  T* y;        // [e], not yet divided by sum
  T max;       // of the scores so far
  T sum;       // of 2^(score − max)
};

template <class T>
void attend_chunk(Query<T>& query, const Seen<T>& seen, int64_t begin, int64_t keys,
                  const AttentionConfig& c) {
  const hn::ScalableTag<T> d;
  HWY_ALIGN std::array<T, kChunk> scores;
  for (int64_t j = 0; j < keys; ++j) {
    const T* k = seen.k + (begin + j) * seen.k_stride;
    scores[static_cast<size_t>(j)] = sum_lanes(d, c.head_dim, [&](auto at, int64_t i, auto sum) PHX_LANES {
      return hn::MulAdd(at.load(d, query.q + i), at.load(d, k + i), sum);
    });
  }
  T* const s = scores.data();
  const T max = std::max(query.max, max_lanes(d, keys, s));
  const auto shrink = hn::Set(d, std::exp2(query.max - max));  // 0 at first: exp2(−∞)
  query.max = max;
  query.sum *= hn::GetLane(shrink);
  query.sum += sum_lanes(d, keys, [&](auto at, int64_t j, auto sum) PHX_LANES {
    const auto p = exp2_of_negative(d, hn::Sub(at.load(d, s + j), hn::Set(d, max)));
    at.store(p, d, s + j);
    return hn::Add(sum, p);
  });
  for_lanes(d, c.values(), [&](auto at, int64_t i) PHX_LANES {
    const T* v = seen.v + begin * seen.v_stride + i;
    auto even = hn::Mul(shrink, at.load(d, query.y + i));
    auto odd = hn::Zero(d);
    int64_t j = 0;
    for (; j + 2 <= keys; j += 2) {
      even = hn::MulAdd(hn::Set(d, s[j]), at.load(d, v + j * seen.v_stride), even);
      odd = hn::MulAdd(hn::Set(d, s[j + 1]), at.load(d, v + (j + 1) * seen.v_stride), odd);
    }
    if (j < keys) even = hn::MulAdd(hn::Set(d, s[j]), at.load(d, v + j * seen.v_stride), even);
    at.store(hn::Add(even, odd), d, query.y + i);
  });
}

/// The rows of a segment at positions up to `position`.
template <class T>
Seen<T> seen_rows(const KvSegment& segment, int64_t position, int64_t kv_head, const AttentionConfig& c) {
  return {segment.k_SGd.data<const T>() + kv_head * c.head_dim,
          segment.v_SGd.data<const T>() + kv_head * c.values(),
          std::clamp<int64_t>(position - segment.first_position + 1, 0, segment.k_SGd.rows()),
          segment.k_SGd.dim(1), segment.v_SGd.dim(1)};
}

/// Query row `row` of the heads that share KV head `kv_head`.
template <class T>
void attend_row(const Tensor& q, int64_t position, std::span<const KvSegment> segments,
                const AttentionConfig& c, const Tensor& y, int64_t kv_head) {
  const hn::ScalableTag<T> d;
  const int64_t group = c.heads / c.kv_heads;
  const T* from = q.data<const T>() + kv_head * group * c.head_dim;
  T* to = y.data<T>() + kv_head * group * c.values();
  PooledVector<T> scaled(static_cast<size_t>(group * c.head_dim));
  for_lanes(d, group * c.head_dim, [&](auto at, int64_t i) PHX_LANES {
    at.store(hn::Mul(at.load(d, from + i), hn::Set(d, static_cast<T>(c.scale * std::numbers::log2e))), d,
             scaled.data() + i);
  });
  std::fill_n(to, group * c.values(), T{0});
  PooledVector<Query<T>> queries;
  for (int64_t h = 0; h < group; ++h) {
    queries.push_back(
        {scaled.data() + h * c.head_dim, to + h * c.values(), -std::numeric_limits<T>::infinity(), T{0}});
  }
  for (const KvSegment& segment : segments) {
    const Seen<T> seen = seen_rows<T>(segment, position, kv_head, c);
    for (int64_t begin = 0; begin < seen.rows; begin += kChunk) {
      for (Query<T>& query : queries) {
        attend_chunk(query, seen, begin, std::min(kChunk, seen.rows - begin), c);
      }
    }
  }
  for (const Query<T>& query : queries) {
    if (query.max == -std::numeric_limits<T>::infinity()) continue;  // saw nothing: zeros
    const auto inverse = hn::Set(d, T{1} / query.sum);
    for_lanes(d, c.values(), [&](auto at, int64_t i) PHX_LANES {
      at.store(hn::Mul(inverse, at.load(d, query.y + i)), d, query.y + i);
    });
  }
}

void attend_row_kernel(const Tensor& q, int64_t position, std::span<const KvSegment> segments,
                       const AttentionConfig& c, const Tensor& y, int64_t kv_head) {
  visit_float(q.dtype(), [&](auto t) { attend_row<decltype(t)>(q, position, segments, c, y, kv_head); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {

HWY_EXPORT(attend_row_kernel);

Tensor attention_over_segments(const Tensor& q, const Tensor& positions, std::span<const KvSegment> segments,
                               const AttentionConfig& c) {
  PHX_CHECK(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 && c.head_dim > 0,
            "{} heads of {} columns over {} KV heads", c.heads, c.head_dim, c.kv_heads);
  PHX_CHECK(q.shape().rank() == 2 && q.dim(1) == c.heads * c.head_dim && positions.rows() == q.rows(),
            "q {}, positions {}, {} heads of {} columns", q.shape(), positions.shape(), c.heads, c.head_dim);
  for (const KvSegment& s : segments) {
    PHX_CHECK(s.k_SGd.shape().rank() == 2 && s.k_SGd.dim(1) == c.kv_heads * c.head_dim &&
                  s.v_SGd.shape() == Shape({s.k_SGd.rows(), c.kv_heads * c.values()}) &&
                  s.k_SGd.dtype() == q.dtype() && s.v_SGd.dtype() == q.dtype(),
              "segment of k {} and v {} at position {}, {} heads of {} and {} columns", s.k_SGd.shape(),
              s.v_SGd.shape(), s.first_position, c.kv_heads, c.head_dim, c.values());
  }
  if constexpr (kHaveCuda) {
    if (q.on_cuda()) return cuda::attention_over_segments(q, positions, segments, c);
  }
  const Tensor y = Tensor::empty({q.rows(), c.heads * c.values()}, q.dtype());
  const auto at = positions.span<const int32_t>();
  parallel_for(q.rows() * c.kv_heads, 1, [&](int64_t item, int64_t) {
    const int64_t row = item / c.kv_heads;
    HWY_DYNAMIC_DISPATCH(attend_row_kernel)
    (q.slice(row, row + 1), at[static_cast<size_t>(row)], segments, c, y.slice(row, row + 1),
     item % c.kv_heads);
  });
  return y;
}

}  // namespace phalanx
#endif
