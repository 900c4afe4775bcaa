#include "phalanx/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/attention_kernel.h"
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

std::span<const int64_t> checked_offsets(const Tensor& offsets, int64_t rows) {
  const auto o = offsets.span<const int64_t>();
  PHX_CHECK(!o.empty() && o.front() == 0 && o.back() == rows && std::ranges::is_sorted(o),
            "offsets {} of sequences in {} rows", o, rows);
  return o;
}

// Operations of products between every query and each key that it sees, of so many columns of a head in all.
int64_t operations(int64_t columns, std::span<const int64_t> offsets, const AttentionConfig& c) {
  int64_t pairs = 0;
  for (size_t b = 0; b + 1 < offsets.size(); ++b) {
    const int64_t n = offsets[b + 1] - offsets[b];
    pairs += n * (n + 1) / 2;
  }
  return 2 * pairs * c.heads * columns;
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

// Rows first … first + rows − 1 of a sequence that starts at row `sequence` of the tensors.
struct Piece {
  int64_t sequence;
  int64_t first;
  int64_t rows;
};

PooledVector<Piece> query_blocks(std::span<const int64_t> offsets) {
  PooledVector<Piece> pieces;
  for (size_t b = 0; b + 1 < offsets.size(); ++b) {
    const int64_t n = offsets[b + 1] - offsets[b];
    for (int64_t first = 0; first < n; first += kBlockRows) {
      pieces.push_back({offsets[b], first, std::min(kBlockRows, n - first)});
    }
  }
  std::ranges::reverse(pieces);  // the last blocks see the most: they start first
  return pieces;
}

template <class T>
void forward(const Tensor& q, const Tensor& k, const Tensor& v, const Attended& out,
             std::span<const int64_t> offsets, const AttentionConfig& c) {
  const attention_kernel::Shape shape = kernel_shape(c);
  const PooledVector<Piece> pieces = query_blocks(offsets);
  const Scratch<T> scratch(attention_kernel::forward_scratch(shape));
  parallel_for(std::ssize(pieces) * c.heads, 1, [&](int64_t item, int64_t) {
    const Piece& p = pieces[static_cast<size_t>(item / c.heads)];
    const int64_t head = item % c.heads;
    const int64_t kv_head = head / (c.heads / c.kv_heads);
    attention_kernel::forward(
        {.q = q.data<const T>() + p.sequence * shape.query_stride + head * c.head_dim,
         .k = k.data<const T>() + p.sequence * shape.key_stride + kv_head * c.head_dim,
         .v = v.data<const T>() + p.sequence * shape.value_stride + kv_head * c.values(),
         .y = out.y_THd.data<T>() + p.sequence * shape.output_stride + head * c.values(),
         .log_sum_exp = out.log_sum_exp_TH.data<T>() + p.sequence * c.heads + head,
         .first = p.first,
         .rows = p.rows},
        shape, scratch.mine());
  });
}

// The keys of a long sequence are cut into ranges of about equal work (by its length alone), so that threads
// share it even when heads are few. Range 0 writes dq; each other one writes its part of dq apart, and the
// parts are added in order.
constexpr int64_t kMaxRanges = 4;
constexpr int64_t kKeysOfRange = 256;

struct KeyPiece {
  Piece keys;
  int64_t n;     // rows of the sequence
  int64_t part;  // row of the parts of dq at which its own starts; −1: it writes dq itself
};

PooledVector<KeyPiece> key_ranges(std::span<const int64_t> offsets) {
  PooledVector<KeyPiece> pieces;
  int64_t part_rows = 0;
  for (size_t b = 0; b + 1 < offsets.size(); ++b) {
    const int64_t n = offsets[b + 1] - offsets[b];
    const int64_t ranges = std::clamp<int64_t>(n / kKeysOfRange, 1, kMaxRanges);
    int64_t begin = 0;
    for (int64_t r = 1; begin < n; ++r) {
      // Keys before x leave (1 − x/n)² of the work.
      const double left =
          std::sqrt(1 - static_cast<double>(std::min(r, ranges)) / static_cast<double>(ranges));
      int64_t end = n - static_cast<int64_t>(left * static_cast<double>(n)) / kBlockRows * kBlockRows;
      end = std::min(n, (end + kBlockRows - 1) / kBlockRows * kBlockRows);
      pieces.push_back({{offsets[b], begin, end - begin}, n, begin == 0 ? -1 : part_rows});
      if (begin > 0) part_rows += n - begin;
      begin = end;
    }
  }
  return pieces;
}

struct BackwardInput {
  const Tensor& dy;
  const Tensor& q;
  const Tensor& k;
  const Tensor& v;
  const Attended& forward;
};

template <class T>
void backward(const BackwardInput& in, const AttentionGradients& out, std::span<const int64_t> offsets,
              const AttentionConfig& c) {
  const attention_kernel::Shape shape = kernel_shape(c);
  const PooledVector<KeyPiece> pieces = key_ranges(offsets);
  int64_t part_rows = 0;
  int64_t most_keys = 0;
  for (const KeyPiece& p : pieces) {
    part_rows = std::max(part_rows, p.part < 0 ? 0 : p.part + p.n - p.keys.first);
    most_keys = std::max(most_keys, p.keys.rows);
  }
  const Scratch<T> scratch(attention_kernel::backward_scratch(shape, most_keys));
  const Tensor parts = Tensor::empty({part_rows, shape.query_stride}, in.q.dtype());
  const int64_t group = c.heads / c.kv_heads;
  parallel_for(std::ssize(pieces) * c.kv_heads, 1, [&](int64_t item, int64_t) {
    const KeyPiece& p = pieces[static_cast<size_t>(item / c.kv_heads)];
    const int64_t kv_head = item % c.kv_heads;
    const int64_t column = kv_head * group * c.head_dim;
    const int64_t query = p.keys.sequence * shape.query_stride + column;
    const int64_t key = p.keys.sequence * shape.key_stride + kv_head * c.head_dim;
    const int64_t value = p.keys.sequence * shape.value_stride + kv_head * c.values();
    const int64_t output = p.keys.sequence * shape.output_stride + kv_head * group * c.values();
    T* dq =
        p.part < 0 ? out.dq_THd.data<T>() + query : parts.data<T>() + p.part * shape.query_stride + column;
    attention_kernel::backward({.q = in.q.data<const T>() + query,
                                .k = in.k.data<const T>() + key,
                                .v = in.v.data<const T>() + value,
                                .y = in.forward.y_THd.data<const T>() + output,
                                .dy = in.dy.data<const T>() + output,
                                .log_sum_exp = in.forward.log_sum_exp_TH.data<const T>() +
                                               p.keys.sequence * c.heads + kv_head * group,
                                .dq = dq,
                                .dk = out.dk_TGd.data<T>() + key,
                                .dv = out.dv_TGd.data<T>() + value,
                                .n = p.n,
                                .begin = p.keys.first,
                                .end = p.keys.first + p.keys.rows,
                                .group = group},
                               shape, scratch.mine());
  });
  for (const KeyPiece& p : pieces) {
    if (p.part < 0) continue;
    parallel_for((p.n - p.keys.first) * shape.query_stride, 8192, [&](int64_t begin, int64_t end) {
      T* dq = out.dq_THd.data<T>() + (p.keys.sequence + p.keys.first) * shape.query_stride;
      const T* part = parts.data<const T>() + p.part * shape.query_stride;
      for (int64_t i = begin; i < end; ++i) dq[i] += part[i];
    });
  }
}

}  // namespace

Attended attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sequence_offsets,
                   const AttentionConfig& config) {
  check_shapes(q, k, v, config);
  PHX_CHECK(q.rows() == k.rows(), "q {} and k {}", q.shape(), k.shape());
  const auto offsets = checked_offsets(sequence_offsets, q.rows());
  const Attended out = {Tensor::empty({q.rows(), config.heads * config.values()}, q.dtype()),
                        Tensor::empty({q.rows(), config.heads}, q.dtype())};
  const int64_t columns = config.head_dim + config.values();
  const TraceSpan span(TraceKind::attention, "attention", operations(columns, offsets, config));
  visit_float(q.dtype(), [&](auto t) { forward<decltype(t)>(q, k, v, out, offsets, config); });
  return out;
}

AttentionGradients attention_backward(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Attended& attended, const Tensor& sequence_offsets,
                                      const AttentionConfig& config) {
  check_shapes(q, k, v, config);
  const Shape y({q.rows(), config.heads * config.values()});
  PHX_CHECK(q.rows() == k.rows() && dy.shape() == y && attended.y_THd.shape() == y, "dy {}, q {}, k {}, y {}",
            dy.shape(), q.shape(), k.shape(), attended.y_THd.shape());
  const auto offsets = checked_offsets(sequence_offsets, q.rows());
  const AttentionGradients out = {Tensor::empty(q.shape(), q.dtype()), Tensor::empty(k.shape(), k.dtype()),
                                  Tensor::empty(v.shape(), v.dtype())};
  // Scores are not kept, so that backward computes them again: the fifth product.
  const int64_t columns = 3 * config.head_dim + 2 * config.values();
  const TraceSpan span(TraceKind::attention, "attention_backward", operations(columns, offsets, config));
  const BackwardInput in = {dy, q, k, v, attended};
  visit_float(q.dtype(), [&](auto t) { backward<decltype(t)>(in, out, offsets, config); });
  return out;
}

}  // namespace phalanx
