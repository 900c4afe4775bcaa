#include "phalanx/ep/slices.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "phalanx/base/trace.h"
#include "phalanx/comm/reduce.h"

namespace phalanx::ep {
namespace {

using Counts = PooledVector<int64_t>;

int64_t sum(const Counts& rows, int ranks) {
  return std::accumulate(rows.begin(), rows.begin() + ranks, int64_t{0});
}

// Of a tensor of all rows, those of a rank.
Tensor rows_of(const Tensor& all, const Counts& rows, int rank) {
  return all.slice(sum(rows, rank), sum(rows, rank + 1));
}

// Σ over ranks of a rank's own rows: its own part of them, and what the others sent, [ranks, rows, …].
Tensor summed(const Tensor& own, const Tensor& incoming, int rank) {
  const Tensor out = Tensor::empty(own.shape(), own.dtype());
  const TraceSpan span(TraceKind::elementwise, "sum_slices", incoming.bytes());
  PooledVector<Tensor> in;
  for (int64_t r = 0; r < incoming.rows(); ++r) in.push_back(incoming.slice(r, r + 1).view(own.shape()));
  in[static_cast<size_t>(rank)] = own;
  reduce_tensors(out, in, Reduce::sum);
  return out;
}

}  // namespace

Task<Counts> Slices::count(int64_t own_rows) {
  if (!group_) co_return Counts(1, own_rows);
  const Tensor own = Tensor::of(Shape{1}, std::span<const int64_t>(&own_rows, 1));
  Work work = group_->all_gather(own);
  const Tensor all = co_await work;
  const auto rows = all.span<int64_t>();
  co_return Counts(rows.begin(), rows.end());
}

Task<> Slices::gather(PooledVector<Tensor> own, Counts rows, PooledVector<Tensor> room) {
  PooledVector<P2P> messages;
  for (size_t i = 0; i < own.size(); ++i) {
    for (size_t r = 0; r < rows.size(); ++r) {
      const Tensor part = rows_of(room[i], rows, static_cast<int>(r));
      if (!group_ || static_cast<int>(r) == group_->rank()) {
        if (part.bytes() > 0) std::memcpy(part.raw(), own[i].raw(), part.bytes());
        continue;
      }
      messages.push_back(send_to(static_cast<int>(r), own[i]));
      messages.push_back(recv_from(static_cast<int>(r), part));
    }
  }
  if (!group_) co_return;
  Work work = group_->exchange(std::move(messages));
  co_await work;
}

Task<PooledVector<Tensor>> Slices::reduce(PooledVector<Tensor> parts, Counts rows) {
  if (!group_) co_return parts;
  const int ranks = group_->size();
  const int me = group_->rank();
  PooledVector<Tensor> incoming;
  PooledVector<P2P> messages;
  for (const Tensor& y : parts) {
    const int64_t own = rows_of(y, rows, me).numel();
    const Tensor in = incoming.emplace_back(Tensor::empty({ranks, own}, y.dtype()));
    for (int r = 0; r < ranks; ++r) {
      if (r == me) continue;
      messages.push_back(send_to(r, rows_of(y, rows, r)));
      messages.push_back(recv_from(r, in.slice(r, r + 1)));
    }
  }
  Work work = group_->exchange(std::move(messages));
  co_await work;
  PooledVector<Tensor> out;
  for (size_t i = 0; i < parts.size(); ++i) {
    out.push_back(summed(rows_of(parts[i], rows, me), incoming[i], me));
  }
  co_return out;
}

}  // namespace phalanx::ep
