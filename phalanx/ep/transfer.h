// Rows from the ranks whose tokens they are to those that have the experts, and back. Two ways: into and out
// of the other ranks' memory, or by messages. Both give the same bits.
#pragma once

#include <memory>

#include "phalanx/comm/group.h"
#include "phalanx/ep/agreement.h"
#include "phalanx/ep/layout.h"
#include "phalanx/ops/quantize.h"

namespace phalanx::ep {

/// What two levels have besides (two_level.h): G ranks a node.
struct Relay {
  Layout to_nodes;                  ///< pairs (token, node)
  PooledVector<int64_t> recv_rows;  ///< [nodes]: of the rows to pass on, how many come from each
  Layout onward;                    ///< pairs (row to pass on, source node · G + rank in this node)
  PooledVector<int64_t> starts;     ///< [nodes · G]: where those begin among the rank's received rows
};

/// A layout, and what the other ranks' layouts mean for this one.
struct Route {
  Layout layout;
  PooledVector<int64_t> recv_rows;  ///< [ranks]: how many rows come from each
  PooledVector<int64_t> starts;     ///< [ranks]: where this rank's rows begin among those that each receives
  Relay relay = {};

  int64_t received() const;
};

/// A route, and what every rank said beside its counts.
struct Plan {
  Route route;
  PooledVector<Statement> statements;
};

/// Bytes that a rank has sent, by the links they went over.
struct LinkBytes {
  int64_t inside = 0;   ///< a node, or memory that is shared
  int64_t between = 0;  ///< nodes, or ranks that share no memory
};

/// One group's way. Tasks of all ranks match: the same calls in the same order.
class Transfer {
 public:
  virtual ~Transfer() = default;
  /// False: pairs are by rank.
  virtual bool takes_any_order() const { return true; }
  /// So far, all that its groups have sent.
  virtual LinkBytes sent() const = 0;
  virtual Task<Plan> plan(Layout layout, Statement own) = 0;
  /// New tensors like those given, of so many rows, for spread to write to.
  virtual PooledVector<Tensor> room(const PooledVector<Tensor>& like, int64_t rows) const = 0;
  /// Each tensor [T, …] to room [received rows or more, …]: by source rank, then token. What is behind stays.
  virtual Task<> spread(PooledVector<Tensor> rows_T, Route route, PooledVector<Tensor> room_R) = 0;
  /// Each tensor [received rows, …] to sums [T, …] over a token's pairs (sum_rows), for the first tensor
  /// after the token's rows of `first`.
  virtual Task<> collect(PooledVector<Tensor> rows_R, Route route, PooledVector<Tensor> first,
                         PooledVector<Tensor> sums_T) = 0;
  /// The same of rows in FP8, with f32 scales.
  virtual Task<> collect_quantized(Quantized rows_R, Route route, PooledVector<Tensor> first,
                                   Tensor sums_T) = 0;
};

/// Each source row is read once, and written to its place on each rank that gets it; sums are read where they
/// lie. What a rank writes to others, and what they read of it, counts as sent. Plans send
/// 8·(R + kStatementWords)·(R − 1) bytes. Error, on all ranks: their rows differ in bytes or dtype.
std::unique_ptr<Transfer> direct_transfer(Group& group);
/// Rows are packed and exchanged; sums are made of what comes back. Plans send
/// 8·(1 + kStatementWords)·(R − 1) bytes.
std::unique_ptr<Transfer> message_transfer(Group& group);

}  // namespace phalanx::ep
