#include "phalanx/ops/decode_attention.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/pooled.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/decode_attention_cuda.h"

namespace phalanx {
namespace {

void check_places(const KvPages& pages, const KvPlaces& places, int64_t rows) {
  PHX_CHECK(pages.page_rows > 0 && pages.k_SGd.rows() % pages.page_rows == 0 &&
                pages.v_SGd.rows() == pages.k_SGd.rows() && pages.table_BP.shape().rank() == 2,
            "pages of {} rows in k {} and v {}, table {}", pages.page_rows, pages.k_SGd.shape(),
            pages.v_SGd.shape(), pages.table_BP.shape());
  PHX_CHECK(places.sequences.numel() == rows && places.positions.numel() == rows,
            "{} sequences and {} positions of {} rows", places.sequences.numel(), places.positions.numel(),
            rows);
}

// The first row of the page that holds the position.
int64_t page_begin(const KvPages& pages, int64_t sequence, int64_t position) {
  const Tensor& table = pages.table_BP;
  const int64_t number = position / pages.page_rows;
  PHX_CHECK(position >= 0 && sequence >= 0 && sequence < table.rows() && number < table.dim(1),
            "position {} of sequence {} of {}, {} pages each", position, sequence, table.rows(),
            table.dim(1));
  const int32_t page = table.data<const int32_t>()[sequence * table.dim(1) + number];
  PHX_CHECK(page >= 0 && page < pages.count(), "page {} of {}", page, pages.count());
  return page * pages.page_rows;
}

void copy_row(const Tensor& to, int64_t to_row, const Tensor& from, int64_t row) {
  copy_into(to.slice(to_row, to_row + 1), from.slice(row, row + 1));
}

void check_new_rows(const KvPages& pages, const KvPlaces& places, const Tensor& k, const Tensor& v) {
  check_places(pages, places, k.rows());
  PHX_CHECK(k.rows() == v.rows() && k.dim(1) == pages.k_SGd.dim(1) && v.dim(1) == pages.v_SGd.dim(1) &&
                k.dtype() == pages.k_SGd.dtype() && v.dtype() == pages.v_SGd.dtype(),
            "k {} and v {} for pages of {} and {} columns", k.shape(), v.shape(), pages.k_SGd.dim(1),
            pages.v_SGd.dim(1));
}

void check_attention(const Tensor& q, const KvPlaces& places, const KvPages& pages,
                     const AttentionConfig& c) {
  check_places(pages, places, q.rows());
  PHX_CHECK(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 && q.dim(1) == c.heads * c.head_dim &&
                pages.k_SGd.dim(1) == c.kv_heads * c.head_dim &&
                pages.v_SGd.dim(1) == c.kv_heads * c.values() && pages.k_SGd.dtype() == q.dtype() &&
                pages.v_SGd.dtype() == q.dtype(),
            "q {}, pages of {} and {} columns, {} heads over {}, of {} and {} columns", q.shape(),
            pages.k_SGd.dim(1), pages.v_SGd.dim(1), c.heads, c.kv_heads, c.head_dim, c.values());
}

}  // namespace

void append_to_pages(const KvPages& pages, const KvPlaces& places, const Tensor& k, const Tensor& v) {
  check_new_rows(pages, places, k, v);
  if constexpr (kHaveCuda) {
    if (k.on_cuda()) return cuda::append_to_pages(pages, places, k, v);
  }
  for (int64_t i = 0; i < k.rows(); ++i) {
    const int64_t position = places.positions.data<const int32_t>()[i];
    const int64_t row =
        page_begin(pages, places.sequences.data<const int32_t>()[i], position) + position % pages.page_rows;
    copy_row(pages.k_SGd, row, k, i);
    copy_row(pages.v_SGd, row, v, i);
  }
}

void turn_and_append(const KvPages& pages, const KvPlaces& places, const AttentionRows& rows,
                     int64_t head_dim) {
  if constexpr (kHaveCuda) {
    if (rows.q_THd.on_cuda() && rows.rotation) {
      check_new_rows(pages, places, rows.k_TGd, rows.v_TGd);
      return cuda::turn_and_append(pages, places, rows, head_dim);
    }
  }
  turn(rows, places.positions, head_dim);
  append_to_pages(pages, places, rows.k_TGd, rows.v_TGd);
}

Tensor attention_over_pages(const Tensor& q, const KvPlaces& places, const KvPages& pages,
                            const AttentionConfig& c) {
  check_attention(q, places, pages, c);
  if constexpr (kHaveCuda) {
    if (q.on_cuda()) return cuda::attention_over_pages(q, places, pages, c);
  }
  const Tensor y = Tensor::empty({q.rows(), c.heads * c.values()}, q.dtype());
  for (int64_t i = 0; i < q.rows(); ++i) {
    const int64_t position = places.positions.data<const int32_t>()[i];
    const int64_t sequence = places.sequences.data<const int32_t>()[i];
    PooledVector<KvSegment> segments;
    for (int64_t first = 0; first <= position; first += pages.page_rows) {
      const int64_t begin = page_begin(pages, sequence, first);
      const int64_t end = begin + std::min(pages.page_rows, position + 1 - first);
      segments.push_back({pages.k_SGd.slice(begin, end), pages.v_SGd.slice(begin, end), first});
    }
    copy_row(y, i, attention_over_segments(q.slice(i, i + 1), places.positions.slice(i, i + 1), segments, c),
             0);
  }
  return y;
}

Tensor append_and_attend(const KvPages& pages, const KvPlaces& places, const AttentionRows& rows,
                         const AttentionConfig& c) {
  const Tensor& q = rows.q_THd;
  if constexpr (kHaveCuda) {
    if (q.on_cuda() && q.rows() > 0) {
      check_new_rows(pages, places, rows.k_TGd, rows.v_TGd);
      check_attention(q, places, pages, c);
      const Tensor y = Tensor::empty({q.rows(), c.heads * c.values()}, q.dtype(), q.device());
      if (cuda::append_and_attend_into(y, pages, places, rows, c)) return y;
    }
  }
  turn_and_append(pages, places, rows, c.head_dim);
  return attention_over_pages(q, places, pages, c);
}

}  // namespace phalanx
