// Expert tensor parallelism: ranks of etp each have a slice of the hidden width of the same experts, so each
// computes a part of the output of every row that any of them received (Megatron Core's parallel folding, D.
// Liu et al., MoE Parallel Folding, 2025, section 3).
#pragma once

#include "phalanx/comm/group.h"

namespace phalanx::ep {

/// Between the rows that each rank of etp received and those of all of them. Gathering and reducing are each
/// other's backward.
///
/// Bytes, for tensors of b bytes a row: with r rows here and R on all ranks, gather sends (etp − 1)·r·b and
/// reduce (R − r)·b; with one rank nothing is sent.
class Slices {
 public:
  /// Null: one rank.
  explicit Slices(Group* etp) : group_(etp && etp->size() > 1 ? etp : nullptr) {}

  bool alone() const { return group_ == nullptr; }
  /// How many rows each rank has.
  Task<PooledVector<int64_t>> count(int64_t own_rows);
  /// Each tensor [own rows, …] to room [all rows or more, …], in rank order.
  Task<> gather(PooledVector<Tensor> own, PooledVector<int64_t> rows, PooledVector<Tensor> room);
  /// Each tensor [all rows, …] → its own rows, summed over ranks in rank order.
  Task<PooledVector<Tensor>> reduce(PooledVector<Tensor> parts, PooledVector<int64_t> rows);

 private:
  Group* group_;  // null: one rank
};

}  // namespace phalanx::ep
