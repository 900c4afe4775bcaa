#include "phalanx/ep/row_places.h"

#include <numeric>
#include <utility>

#include "phalanx/base/error.h"

namespace phalanx::ep {

Counts sums_before(const Counts& rows) {
  Counts out(rows.size());
  std::exclusive_scan(rows.begin(), rows.end(), out.begin(), int64_t{0});
  return out;
}

int64_t others(const Counts& rows, int rank) {
  return std::accumulate(rows.begin(), rows.end(), -rows[static_cast<size_t>(rank)]);
}

int64_t bytes_of_row(const PooledVector<Tensor>& tensors) {
  int64_t bytes = 0;
  for (const Tensor& x : tensors) bytes += static_cast<int64_t>(row_bytes(x));
  return bytes;
}

PooledVector<std::byte*> bases(std::span<const Tensor> tensors, const Counts& starts) {
  PooledVector<std::byte*> out;
  for (size_t r = 0; r < starts.size(); ++r) {
    const Tensor& t = tensors[tensors.size() == 1 ? 0 : r];
    out.push_back(t.raw() + static_cast<size_t>(starts[r]) * row_bytes(t));
  }
  return out;
}

PooledVector<Tensor> new_rows(const PooledVector<Tensor>& like, int64_t rows) {
  PooledVector<Tensor> out;
  for (const Tensor& t : like) out.push_back(Tensor::empty(t.shape().with_rows(rows), t.dtype()));
  return out;
}

Task<> send_rows(Group& group, PooledVector<Tensor> rows, Layout layout, Counts recv_rows,
                 PooledVector<Tensor> into) {
  const Counts starts = sums_before(layout.rows);
  const PooledVector<Tensor> packed = new_rows(rows, layout.pairs());
  PooledVector<Work> works;
  for (size_t i = 0; i < rows.size(); ++i) {
    spread_rows(layout, rows[i], bases(std::span(&packed[i], 1), starts));
    works.push_back(group.all_to_all(packed[i], layout.rows, recv_rows, into[i]));
  }
  for (Work& work : works) co_await work;
}

Task<PooledVector<Tensor>> send_back(Group& group, PooledVector<Tensor> rows, Layout layout,
                                     Counts recv_rows) {
  PooledVector<Work> works;
  for (const Tensor& y : rows) works.push_back(group.all_to_all(y, recv_rows, layout.rows));
  PooledVector<Tensor> out;
  for (Work& work : works) {
    Tensor back = co_await work;
    out.push_back(std::move(back));
  }
  co_return out;
}

void sum_packed(const Layout& layout, const Tensor& rows, const Tensor& sums, std::span<const Tensor> first) {
  sum_rows(layout, bases(std::span(&rows, 1), sums_before(layout.rows)), sums, first);
}

void sum_packed(const Layout& layout, const Quantized& rows, const Tensor& sums,
                std::span<const Tensor> first) {
  const Counts starts = sums_before(layout.rows);
  const PooledVector<std::byte*> q = bases(std::span(&rows.q_TD, 1), starts);
  const PooledVector<std::byte*> scales = bases(std::span(&rows.scales_TS, 1), starts);
  sum_quantized_rows(layout, {q, scales}, sums, first);
}

void make_shareable(const Group& group, PooledVector<Tensor>& tensors) {
  for (Tensor& t : tensors) t = group.shareable(std::move(t));
}

PooledVector<Tensor> shareable_rows(const Group& group, const PooledVector<Tensor>& like, int64_t rows) {
  PooledVector<Tensor> out = new_rows(like, rows);
  make_shareable(group, out);
  return out;
}

namespace {

// All ranks see all tensors, so that all throw.
void check_alike(const Tensor& x, const Tensor& of_0, size_t rank) {
  if (x.dtype() == of_0.dtype() && row_bytes(x) == row_bytes(of_0)) return;
  throw Error("rank {} has rows of {} bytes of {}, rank 0 of {} bytes of {}", rank, row_bytes(x),
              dtype_name(x.dtype()), row_bytes(of_0), dtype_name(of_0.dtype()));
}

}  // namespace

Task<PooledVector<Tensor>> everyones(Group& group, PooledVector<Tensor> own) {
  const auto ranks = static_cast<size_t>(group.size());
  PooledVector<Tensor> all(own.size() * ranks);
  PooledVector<Work> works;
  works.reserve(own.size());
  for (size_t i = 0; i < own.size(); ++i) {
    works.push_back(group.share(own[i], std::span(all).subspan(i * ranks, ranks)));
  }
  for (Work& work : works) co_await work;
  for (size_t i = 0; i < all.size(); ++i) check_alike(all[i], all[i / ranks * ranks], i % ranks);
  co_return all;
}

}  // namespace phalanx::ep
