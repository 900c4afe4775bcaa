// Rows from the ranks whose tokens they are to those that have the experts, and back. Two ways: into and out
// of the other ranks' memory, or by messages. Both give the same bits.
#pragma once

#include <memory>

#include "phalanx/comm/group.h"
#include "phalanx/ep/layout.h"

namespace phalanx::ep {

/// A layout, and what the other ranks' layouts mean for this one.
struct Route {
  Layout layout;
  PooledVector<int64_t> recv_rows;  ///< [ranks]: how many rows come from each
  PooledVector<int64_t> starts;     ///< [ranks]: where this rank's rows begin among those that each receives

  int64_t received() const;
};

/// One group's way. Tasks of all ranks match: the same calls in the same order.
class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual Task<Route> plan(Layout layout) = 0;
  /// Each tensor [T, …] → [received rows, …], by source rank, then token.
  virtual Task<PooledVector<Tensor>> spread(PooledVector<Tensor> rows_T, Route route) = 0;
  /// Each tensor [received rows, …] → [T, …]: the sum over a token's pairs, by rank (sum_rows).
  virtual Task<PooledVector<Tensor>> collect(PooledVector<Tensor> rows_R, Route route) = 0;
};

/// Each source row is read once, and written to its place on each rank that gets it; sums are read where they
/// lie. What a rank writes to others, and what they read of it, counts as sent. Plans send 8·R·(R − 1) bytes.
std::unique_ptr<Transfer> direct_transfer(Group& group);
/// Rows are packed and exchanged; sums are made of what comes back. Plans send 8·(R − 1) bytes.
std::unique_ptr<Transfer> message_transfer(Group& group);

}  // namespace phalanx::ep
