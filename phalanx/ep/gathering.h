// Dispatch and combine for GPUs, where no host learns how many rows a rank's experts have: every rank gets
// the rows of all, and keeps the choices of its own experts.
#pragma once

#include "phalanx/comm/group.h"
#include "phalanx/ep/expert_map.h"
#include "phalanx/tensor/rows.h"

namespace phalanx::ep {

/// What the experts of a rank see: rows, and their choices and weights.
struct Gathered {
  Rows x_RD;         // all live
  Rows topk_idx_RK;  // i64: local experts, −1 for those elsewhere
  Tensor weights_RK;
};

/// Experts 0…E−1 lie in equal runs on the ranks of `ep`; ranks of `etp` have slices of the same experts, as
/// in Buffer. R = etp · ep · T rows of all ranks, each with T: by rank of etp, then of ep, then token. Shapes
/// depend on nothing that is chosen, so that on a GPU no host waits. Sums run as Buffer's: over etp in rank
/// order, then over ep; a rank without an expert of the token adds zeros.
///
/// Bytes that a rank sends of a tensor with b bytes a row: (R − T)·b, gathered or summed. Buffer sends a
/// token only where it has experts, so with many ranks less; but its hosts exchange counts first.
class Gathering {
 public:
  /// Error: the ranks do not divide the experts.
  Gathering(Group& ep, Group& etp, int experts);

  int local_experts() const { return static_cast<int>(experts_.count(ep_.rank())); }
  /// x [T, D], topk_idx i64 [T, K] of global experts (−1: none), weights [T, K]. Every rank has as many rows.
  Task<Gathered> dispatch(Tensor x_TD, Tensor topk_idx_TK, Tensor weights_TK);
  /// [T, …] of each rank → [R, …] of all.
  Task<Tensor> gather(Tensor x);
  /// The reverse, and each other's backward: [R, …] → this rank's rows [T, …], summed over ranks.
  Task<Tensor> sum(Tensor x);

 private:
  Group& ep_;
  Group& etp_;
  ExpertMap experts_;
};

}  // namespace phalanx::ep
