// Rows from the ranks whose tokens they are to those that have the experts, and back. Two ways: into and out
// of the other ranks' memory, or by messages. Both give the same bits.
#pragma once

#include <memory>

#include "phalanx/comm/group.h"
#include "phalanx/ep/agreement.h"
#include "phalanx/ep/layout.h"
#include "phalanx/ops/quantize.h"

namespace phalanx::ep {

/// A layout, and what the other ranks' layouts mean for this one.
struct Route {
  Layout layout;
  PooledVector<int64_t> recv_rows;  ///< [ranks]: how many rows come from each
  PooledVector<int64_t> starts;     ///< [ranks]: where this rank's rows begin among those that each receives

  int64_t received() const;
};

/// A route, and what every rank said beside its counts.
struct Plan {
  Route route;
  PooledVector<Statement> statements;
};

/// One group's way. Tasks of all ranks match: the same calls in the same order.
class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual Task<Plan> plan(Layout layout, Statement own) = 0;
  /// Each tensor [T, …] → [max(capacity, received rows), …], by source rank, then token; what is behind the
  /// received rows is undefined.
  virtual Task<PooledVector<Tensor>> spread(PooledVector<Tensor> rows_T, Route route, int64_t capacity) = 0;
  /// Each tensor [received rows, …] → [T, …]: the sum over a token's pairs (sum_rows), for the first tensor
  /// after the token's rows of `first`.
  virtual Task<PooledVector<Tensor>> collect(PooledVector<Tensor> rows_R, Route route,
                                             PooledVector<Tensor> first) = 0;
  /// The same of rows in FP8, with f32 scales; sums have `dtype`.
  virtual Task<Tensor> collect_quantized(Quantized rows_R, Route route, DType dtype,
                                         PooledVector<Tensor> first) = 0;
};

/// Each source row is read once, and written to its place on each rank that gets it; sums are read where they
/// lie. What a rank writes to others, and what they read of it, counts as sent. Plans send
/// 8·(R + kStatementWords)·(R − 1) bytes. Error, on all ranks: their rows differ in bytes or dtype.
std::unique_ptr<Transfer> direct_transfer(Group& group);
/// Rows are packed and exchanged; sums are made of what comes back. Plans send
/// 8·(1 + kStatementWords)·(R − 1) bytes.
std::unique_ptr<Transfer> message_transfer(Group& group);

}  // namespace phalanx::ep
