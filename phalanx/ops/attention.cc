#include "phalanx/ops/attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/attention_kernel.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/tensor/scratch.h"

namespace phalanx {
namespace {

using attention_kernel::kBlockRows;

// T rows, B sequences, H query heads, G KV heads, d columns of a head of q and k, e of one of v and y.

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& c) {
  PHX_CHECK(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 && c.head_dim > 0,
            "{} heads of {} columns over {} KV heads", c.heads, c.head_dim, c.kv_heads);
  PHX_CHECK(q.shape().rank() == 2 && q.dim(1) == c.heads * c.head_dim, "q {}, {} heads of {} columns",
            q.shape(), c.heads, c.head_dim);
  PHX_CHECK(k.shape().rank() == 2 && k.dim(1) == c.kv_heads * c.head_dim &&
                v.shape() == Shape({k.rows(), c.kv_heads * c.values()}),
            "k {} and v {}, {} heads of {} and {} columns", k.shape(), v.shape(), c.kv_heads, c.head_dim,
            c.values());
  PHX_CHECK(q.dtype() == k.dtype() && k.dtype() == v.dtype(), "q {}, k {}, v {}", dtype_name(q.dtype()),
            dtype_name(k.dtype()), dtype_name(v.dtype()));
}

// Of sums over inputs of this dtype, and of the log-sum-exp.
DType sum_dtype(DType dtype) { return dtype == DType::bf16 ? DType::f32 : dtype; }

// Of y and its gradient.
Shape output_shape(const Tensor& q, const AttentionConfig& c) { return {q.rows(), c.heads * c.values()}; }

std::span<const int64_t> checked_offsets(const Tensor& offsets, int64_t rows) {
  const auto o = offsets.span<const int64_t>();
  PHX_CHECK(!o.empty() && o.front() == 0 && o.back() == rows && std::ranges::is_sorted(o),
            "offsets {} of sequences in {} rows", o, rows);
  return o;
}

// Of products between every query and each key that it sees, of so many columns of a head in all.
int64_t operations(int64_t columns, const AttentionTiles& tiles, const AttentionConfig& c) {
  return 2 * tiles.pairs() * c.heads * columns;
}
int64_t forward_operations(const AttentionTiles& tiles, const AttentionConfig& c) {
  return operations(c.head_dim + c.values(), tiles, c);
}
// Scores are not kept, so that backward computes them again: the fifth product.
int64_t backward_operations(const AttentionTiles& tiles, const AttentionConfig& c) {
  return operations(3 * c.head_dim + 2 * c.values(), tiles, c);
}

// How many of the first rectangles share neither queries nor keys, for they ascend in both.
size_t rectangles_apart(std::span<const AttentionTile> rectangles) {
  size_t n = 1;
  while (n < rectangles.size() &&
         rectangles[n].first_query >= rectangles[n - 1].first_query + rectangles[n - 1].queries &&
         rectangles[n].first_key >= rectangles[n - 1].first_key + rectangles[n - 1].keys) {
    ++n;
  }
  return n;
}

// Calls f with tiles that share neither queries nor keys.
template <class F>
void for_each_wave(const AttentionTiles& tiles, F f) {
  f(std::span<const AttentionTile>(tiles.squares));
  for (std::span<const AttentionTile> left = tiles.rectangles; !left.empty();) {
    const size_t n = rectangles_apart(left);
    f(left.first(n));
    left = left.subspan(n);
  }
}

attention_kernel::Shape kernel_shape(const AttentionConfig& c) {
  return {.head_dim = c.head_dim,
          .value_dim = c.values(),
          .query_stride = c.heads * c.head_dim,
          .key_stride = c.kv_heads * c.head_dim,
          .value_stride = c.kv_heads * c.values(),
          .output_stride = c.heads * c.values(),
          .heads = c.heads,
          .scale = c.scale};
}

// Queries first … first + rows − 1 of a tile.
struct QueryPiece {
  AttentionTile tile;
  int64_t first;
  int64_t rows;
};

PooledVector<QueryPiece> query_blocks(std::span<const AttentionTile> tiles) {
  PooledVector<QueryPiece> pieces;
  for (const AttentionTile& t : tiles) {
    for (int64_t first = 0; first < t.queries; first += kBlockRows) {
      pieces.push_back({t, first, std::min(kBlockRows, t.queries - first)});
    }
  }
  std::ranges::reverse(pieces);  // the last blocks see the most: they start first
  return pieces;
}

struct ForwardInput {
  const Tensor& q;
  const Tensor& k;
  const Tensor& v;
};

// `adds`: to what `out` holds.
template <class T>
void forward(const ForwardInput& in, const Attended& out, std::span<const AttentionTile> tiles, bool adds,
             const AttentionConfig& c) {
  const attention_kernel::Shape shape = kernel_shape(c);
  const PooledVector<QueryPiece> pieces = query_blocks(tiles);
  const Scratch<T> scratch(attention_kernel::forward_scratch(shape));
  parallel_for(std::ssize(pieces) * c.heads, 1, [&](int64_t item, int64_t) {
    const QueryPiece& p = pieces[static_cast<size_t>(item / c.heads)];
    const int64_t head = item % c.heads;
    const int64_t kv_head = head / (c.heads / c.kv_heads);
    const int64_t row = p.tile.first_query + p.first;
    const int64_t key = p.tile.first_key;
    attention_kernel::forward({.q = in.q.data<const T>() + row * shape.query_stride + head * c.head_dim,
                               .k = in.k.data<const T>() + key * shape.key_stride + kv_head * c.head_dim,
                               .v = in.v.data<const T>() + key * shape.value_stride + kv_head * c.values(),
                               .y = out.y_THd.data<T>() + row * shape.output_stride + head * c.values(),
                               .log_sum_exp = out.log_sum_exp_TH.data<T>() + row * c.heads + head,
                               .rows = p.rows,
                               .keys = p.tile.causal ? p.first + p.rows : p.tile.keys,
                               .causal = p.tile.causal,
                               .adds = adds},
                              shape, scratch.mine());
  });
}

// Many keys are cut into ranges of about equal work (by their number alone), so that threads share it even
// when heads are few. The first range writes dq; each other one writes its part of dq apart, and the parts
// are added in order.
constexpr int64_t kMaxRanges = 4;
constexpr int64_t kKeysOfRange = 256;

struct KeyPiece {
  AttentionTile tile;
  int64_t begin;  // keys of the tile
  int64_t end;
  int64_t part;  // row of the parts of dq at which its own starts; −1: it writes dq itself

  int64_t first_query() const { return tile.causal ? begin : 0; }
  int64_t part_rows() const { return part < 0 ? 0 : tile.queries - first_query(); }
};

// Where the first r of so many ranges end.
int64_t end_of_range(const AttentionTile& tile, int64_t r, int64_t ranges) {
  const double share = static_cast<double>(r) / static_cast<double>(ranges);
  // Keys before x leave (1 − x/n)² of a square's work.
  const double left = tile.causal ? std::sqrt(1 - share) : 1 - share;
  int64_t end =
      tile.keys - static_cast<int64_t>(left * static_cast<double>(tile.keys)) / kBlockRows * kBlockRows;
  return std::min(tile.keys, (end + kBlockRows - 1) / kBlockRows * kBlockRows);
}

PooledVector<KeyPiece> key_ranges(std::span<const AttentionTile> tiles) {
  PooledVector<KeyPiece> pieces;
  int64_t part_rows = 0;
  for (const AttentionTile& t : tiles) {
    const int64_t ranges = std::clamp<int64_t>(t.keys / kKeysOfRange, 1, kMaxRanges);
    int64_t begin = 0;
    for (int64_t r = 1; begin < t.keys; ++r) {
      const int64_t end = end_of_range(t, std::min(r, ranges), ranges);
      pieces.push_back({t, begin, end, begin == 0 ? -1 : part_rows});
      part_rows += pieces.back().part_rows();
      begin = end;
    }
  }
  return pieces;
}

// `adds`: to what `out` holds.
template <class T>
void backward(const AttentionBackward& in, const AttentionGradients& out,
              std::span<const AttentionTile> tiles, bool adds, const AttentionConfig& c) {
  const attention_kernel::Shape shape = kernel_shape(c);
  const PooledVector<KeyPiece> pieces = key_ranges(tiles);
  int64_t part_rows = 0;
  int64_t most_keys = 0;
  for (const KeyPiece& p : pieces) {
    part_rows += p.part_rows();
    most_keys = std::max(most_keys, p.end - p.begin);
  }
  const Scratch<T> scratch(attention_kernel::backward_scratch(shape, most_keys));
  const Tensor parts = Tensor::empty({part_rows, shape.query_stride}, in.q_THd.dtype());
  const int64_t group = c.heads / c.kv_heads;
  parallel_for(std::ssize(pieces) * c.kv_heads, 1, [&](int64_t item, int64_t) {
    const KeyPiece& p = pieces[static_cast<size_t>(item / c.kv_heads)];
    const int64_t kv_head = item % c.kv_heads;
    const int64_t column = kv_head * group * c.head_dim;
    const int64_t query = p.tile.first_query * shape.query_stride + column;
    const int64_t key = p.tile.first_key * shape.key_stride + kv_head * c.head_dim;
    const int64_t value = p.tile.first_key * shape.value_stride + kv_head * c.values();
    const int64_t output = p.tile.first_query * shape.output_stride + kv_head * group * c.values();
    T* dq =
        p.part < 0 ? out.dq_THd.data<T>() + query : parts.data<T>() + p.part * shape.query_stride + column;
    attention_kernel::backward({.q = in.q_THd.data<const T>() + query,
                                .k = in.k_SGd.data<const T>() + key,
                                .v = in.v_SGd.data<const T>() + value,
                                .y = in.forward.y_THd.data<const T>() + output,
                                .dy = in.dy_THd.data<const T>() + output,
                                .log_sum_exp = in.forward.log_sum_exp_TH.data<const T>() +
                                               p.tile.first_query * c.heads + kv_head * group,
                                .dq = dq,
                                .dk = out.dk_TGd.data<T>() + key,
                                .dv = out.dv_TGd.data<T>() + value,
                                .n = p.tile.queries,
                                .begin = p.begin,
                                .end = p.end,
                                .group = group,
                                .causal = p.tile.causal,
                                .adds_to_queries = adds && p.part < 0,
                                .adds_to_keys = adds},
                               shape, scratch.mine());
  });
  for (const KeyPiece& p : pieces) {
    parallel_for(p.part_rows() * shape.query_stride, 8192, [&](int64_t begin, int64_t end) {
      T* dq = out.dq_THd.data<T>() + (p.tile.first_query + p.first_query()) * shape.query_stride;
      const T* part = parts.data<const T>() + p.part * shape.query_stride;
      for (int64_t i = begin; i < end; ++i) dq[i] += part[i];
    });
  }
}

// Where the tensors are. `adds`: to what `out` holds.
void attend(const std::array<Tensor, 3>& q_k_v, const Attended& out, std::span<const AttentionTile> tiles,
            bool adds, const AttentionConfig& c) {
  if constexpr (kHaveCuda) {
    if (out.y_THd.on_cuda()) return cuda::attention(q_k_v, out, tiles, adds, c);
  }
  visit_float(q_k_v[0].dtype(), [&](auto t) {
    forward<decltype(t)>({q_k_v[0], q_k_v[1], q_k_v[2]}, out, tiles, adds, c);
  });
}

void attend_backward(const AttentionBackward& in, const AttentionGradients& out,
                     std::span<const AttentionTile> tiles, bool adds, const AttentionConfig& c) {
  if constexpr (kHaveCuda) {
    if (in.q_THd.on_cuda()) return cuda::attention_backward(in, out, tiles, adds, c);
  }
  visit_float(in.q_THd.dtype(), [&](auto t) { backward<decltype(t)>(in, out, tiles, adds, c); });
}

void check_tiles(const AttentionTiles& tiles, int64_t queries, int64_t keys) {
  const auto inside = [&](const AttentionTile& t) {
    return t.first_query + t.queries <= queries && t.first_key + t.keys <= keys;
  };
  PHX_CHECK(std::ranges::all_of(tiles.squares, inside) && std::ranges::all_of(tiles.rectangles, inside),
            "tiles of more than {} queries and {} keys", queries, keys);
}

void check_backward(const AttentionBackward& in, const AttentionConfig& c) {
  check_shapes(in.q_THd, in.k_SGd, in.v_SGd, c);
  const Shape y = output_shape(in.q_THd, c);
  PHX_CHECK(in.dy_THd.shape() == y && in.forward.y_THd.shape() == y, "dy {}, q {}, y {}", in.dy_THd.shape(),
            in.q_THd.shape(), in.forward.y_THd.shape());
  PHX_CHECK(in.dy_THd.dtype() == in.q_THd.dtype() && in.forward.y_THd.dtype() == in.q_THd.dtype(),
            "dy {}, q {}, y {}", dtype_name(in.dy_THd.dtype()), dtype_name(in.q_THd.dtype()),
            dtype_name(in.forward.y_THd.dtype()));
}

}  // namespace

Attended attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sequence_offsets,
                   const AttentionConfig& config) {
  check_shapes(q, k, v, config);
  PHX_CHECK(q.rows() == k.rows(), "q {} and k {}", q.shape(), k.shape());
  const AttentionTiles tiles = attention_tiles(checked_offsets(sequence_offsets, q.rows()));
  const Attended out = {Tensor::empty(output_shape(q, config), q.dtype(), q.device()),
                        Tensor::empty({q.rows(), config.heads}, sum_dtype(q.dtype()), q.device())};
  const TraceSpan span(TraceKind::attention, "attention", forward_operations(tiles, config));
  attend({q, k, v}, out, tiles.squares, false, config);
  return out;
}

AttentionGradients attention_backward(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Attended& attended, const Tensor& sequence_offsets,
                                      const AttentionConfig& config) {
  const AttentionBackward in = {dy, q, k, v, attended};
  check_backward(in, config);
  PHX_CHECK(q.rows() == k.rows(), "q {} and k {}", q.shape(), k.shape());
  const AttentionTiles tiles = attention_tiles(checked_offsets(sequence_offsets, q.rows()));
  const auto like = [](const Tensor& t) { return Tensor::empty(t.shape(), t.dtype(), t.device()); };
  const AttentionGradients out = {like(q), like(k), like(v)};
  const TraceSpan span(TraceKind::attention, "attention_backward", backward_operations(tiles, config));
  attend_backward(in, out, tiles.squares, false, config);
  return out;
}

Attended attended_nothing(const Tensor& q, const AttentionConfig& config) {
  const DType dtype = sum_dtype(q.dtype());
  const Attended out = {Tensor::zeros(output_shape(q, config), dtype, q.device()),
                        Tensor::empty({q.rows(), config.heads}, dtype, q.device())};
  if constexpr (kHaveCuda) {
    if (q.on_cuda()) {
      cuda::fill_infinity(out.log_sum_exp_TH);
      return out;
    }
  }
  visit_float(dtype, [&](auto t) {
    using T = decltype(t);
    std::ranges::fill(out.log_sum_exp_TH.span<T>(), -std::numeric_limits<T>::infinity());
  });
  return out;
}

void attention_into(const Attended& sums, const Tensor& q, const Tensor& k, const Tensor& v,
                    const AttentionTiles& tiles, const AttentionConfig& config) {
  check_shapes(q, k, v, config);
  check_tiles(tiles, q.rows(), k.rows());
  PHX_CHECK(sums.y_THd.shape() == output_shape(q, config), "y {}, q {}", sums.y_THd.shape(), q.shape());
  const TraceSpan span(TraceKind::attention, "attention_into", forward_operations(tiles, config));
  for_each_wave(tiles, [&](std::span<const AttentionTile> wave) {
    attend({q, k, v}, sums, wave, true, config);
  });
}

void attention_backward_into(const AttentionGradients& sums, const AttentionBackward& in,
                             const AttentionTiles& tiles, const AttentionConfig& config) {
  check_backward(in, config);
  check_tiles(tiles, in.q_THd.rows(), in.k_SGd.rows());
  PHX_CHECK(sums.dq_THd.shape() == in.q_THd.shape() && sums.dk_TGd.shape() == in.k_SGd.shape() &&
                sums.dv_TGd.shape() == in.v_SGd.shape(),
            "dq {}, dk {}, dv {}", sums.dq_THd.shape(), sums.dk_TGd.shape(), sums.dv_TGd.shape());
  const TraceSpan span(TraceKind::attention, "attention_backward_into", backward_operations(tiles, config));
  for_each_wave(tiles,
                [&](std::span<const AttentionTile> wave) { attend_backward(in, sums, wave, true, config); });
}

}  // namespace phalanx
