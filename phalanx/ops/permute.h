// Rows into expert order and back. R received rows with K slots each; a slot names a local expert or none.
#pragma once

#include "phalanx/tensor/rows.h"

namespace phalanx {

/// Where each slot's row stands when rows are grouped by expert: by expert, then row, then slot.
struct ExpertOrder {
  Tensor offsets;  // i64 [E+1]: expert e owns rows offsets[e] … offsets[e+1]−1
  Tensor slots;    // i64 [R·K]: expert row → slot (row · K + k); the first offsets[E] count
  Tensor places;   // i64 [R, K]: slot → expert row, −1 for none
  Tensor live;     // i64 [1]: offsets[E]
};
/// topk_idx i64 [R, K] of local experts 0…experts−1, −1 for none.
ExpertOrder order_by_expert(const Rows& topk_idx_RK, int experts);

/// x [R, D] → one row for each slot that names an expert, in expert order.
Rows permute(const Rows& x_RD, const ExpertOrder& order);
/// Back: y[r] = Σ_k weights[r, k] · rows[place of (r, k)], in slot order; weights may be empty, for ones.
Rows unpermute(const Rows& rows, const ExpertOrder& order, const Tensor& weights_RK, const Rows& like_RD);

}  // namespace phalanx
