// Dispatch and combine: rows to the ranks that own their experts, and back. Vocabulary and row rules are
// DeepEP's.
#pragma once

#include "phalanx/ep/slices.h"
#include "phalanx/ep/transfer.h"
#include "phalanx/tensor/rows.h"

namespace phalanx::ep {

/// What combine (and a cached dispatch) needs of a dispatch.
struct Handle {
  Route route;
  PooledVector<int64_t> slice_rows;  // [etp]: what each rank with a slice of the same experts received
};

/// One row for each (token, rank) pair, by source rank, then token; under etp by its ranks first.
struct Dispatched {
  Rows x_RD;
  Rows topk_idx_RK;   // i64: local experts, −1 for those elsewhere
  Tensor weights_RK;  // of those, 0 elsewhere
  Handle handle;
};

/// Sums over ranks; weights are routed back to the slots they came from.
struct Combined {
  Tensor x_TD;
  Tensor weights_TK;
};

/// Experts 0…E−1 lie in runs on the ranks of `ep`. Where the ranks share memory, rows are written to their
/// place (transfer.h), elsewhere they go as messages; backward of dispatch is combine, and the reverse. Ranks
/// of `etp` have slices of the same experts (slices.h): dispatch gives each the rows of all of them, and
/// combine sums what they made of those.
///
/// Bytes that a rank of R sends over ep, with n of its (token, rank) pairs going to other ranks, m coming
/// from them, b bytes a row of x, and K slots a token with weights of w bytes: dispatch n · (b + K · (8 + w))
/// and the counts (transfer.h); a cached one n · b; combine m · b, and m · K · w for weights.
class Buffer {
 public:
  /// Equal runs. Error: the ranks do not divide the experts.
  Buffer(Group& ep, int experts, Group* etp = nullptr);
  /// Error: the map is of another number of ranks.
  Buffer(Group& ep, ExpertMap experts, Group* etp = nullptr);

  int local_experts() const { return static_cast<int>(experts_.count(group_.rank())); }
  /// x [T, D], topk_idx i64 [T, K] of global experts (−1: none), weights [T, K].
  Task<Dispatched> dispatch(Tensor x_TD, Tensor topk_idx_TK, Tensor weights_TK);
  /// Other rows the same way; nothing but the rows is exchanged.
  Task<Rows> dispatch(Tensor x_TD, Handle handle);
  /// y [R, D] back to the tokens; weights [R, K] beside them, or an empty tensor.
  Task<Combined> combine(Rows y_RD, Handle handle, Tensor weights_RK);

 private:
  Group& group_;
  std::unique_ptr<Transfer> transfer_;
  Slices slices_;
  ExpertMap experts_;
};

}  // namespace phalanx::ep
