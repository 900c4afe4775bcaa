#include "phalanx/ep/row_places.h"

#include <numeric>

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

PooledVector<std::byte*> bases(std::span<const Tensor> tensors, const Counts& starts) {
  PooledVector<std::byte*> out;
  for (size_t r = 0; r < starts.size(); ++r) {
    const Tensor& t = tensors[tensors.size() == 1 ? 0 : r];
    out.push_back(t.raw() + static_cast<size_t>(starts[r]) * row_bytes(t));
  }
  return out;
}

void make_shareable(const Group& group, PooledVector<Tensor>& tensors) {
  for (Tensor& t : tensors) t = group.shareable(std::move(t));
}

PooledVector<Tensor> shareable_rows(const Group& group, const PooledVector<Tensor>& like, int64_t rows) {
  PooledVector<Tensor> out;
  for (const Tensor& t : like) out.push_back(Tensor::empty(t.shape().with_rows(rows), t.dtype()));
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
