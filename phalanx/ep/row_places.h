// Where rows lie, here and on other ranks: what the ways of moving them (transfer.h) have in common.
#pragma once

#include "phalanx/comm/group.h"
#include "phalanx/ep/layout.h"
#include "phalanx/ops/quantize.h"

namespace phalanx::ep {

using Counts = PooledVector<int64_t>;

/// Where each rank's rows begin, if they lie one rank behind the other.
Counts sums_before(const Counts& rows);
/// Of rows to or from each rank, those of all but `rank`.
int64_t others(const Counts& rows, int rank);
/// Of one row of all the tensors.
int64_t bytes_of_row(const PooledVector<Tensor>& tensors);

/// The address of row starts[r] of tensor r, or of the only one.
PooledVector<std::byte*> bases(std::span<const Tensor> tensors, const Counts& starts);

/// New tensors of so many rows, like those given.
PooledVector<Tensor> new_rows(const PooledVector<Tensor>& like, int64_t rows);

/// Each tensor [T, …], packed by where its rows go, sent as `layout` says, and received as recv_rows do, to
/// the first rows of into[i].
Task<> send_rows(Group& group, PooledVector<Tensor> rows_T, Layout layout, Counts recv_rows,
                 PooledVector<Tensor> into);
/// The reverse: what send_rows brought, packed by where it came from, to there, in new tensors.
Task<PooledVector<Tensor>> send_back(Group& group, PooledVector<Tensor> rows_R, Layout layout,
                                     Counts recv_rows);
/// The sums [T, …] of rows that came back (sum_rows, sum_quantized_rows).
void sum_packed(const Layout& layout, const Tensor& rows_P, const Tensor& sums_T,
                std::span<const Tensor> first);
void sum_packed(const Layout& layout, const Quantized& rows_P, const Tensor& sums_T,
                std::span<const Tensor> first);

/// The tensors themselves where they can be shared, else copies.
void make_shareable(const Group& group, PooledVector<Tensor>& tensors);
/// New tensors of so many rows, like those given, that the group's ranks can share.
PooledVector<Tensor> shareable_rows(const Group& group, const PooledVector<Tensor>& like, int64_t rows);

/// Of every rank of a group that shares memory, those tensors (Group::share): the first one's by rank, then
/// the second's. Drop them before the unshare. Error, on all ranks: rows that differ in bytes or dtype.
Task<PooledVector<Tensor>> everyones(Group& group, PooledVector<Tensor> own);
/// Of those the i-th's, by rank.
inline std::span<const Tensor> of_tensor(const PooledVector<Tensor>& everyones, size_t i, int ranks) {
  const auto n = static_cast<size_t>(ranks);
  return std::span(everyones).subspan(i * n, n);
}

}  // namespace phalanx::ep
