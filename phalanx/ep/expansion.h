// Received rows in expanded form: once for each of their local experts, grouped by expert.
#pragma once

#include "phalanx/ep/tokens.h"

namespace phalanx::ep {

/// Which row goes to which places; N expanded rows, those between experts included.
struct Expansion {
  Layout layout;       ///< pairs (received row, local expert), those of a row by slot
  Tensor topk_idx_RK;  ///< i64: local experts of the received rows; −1: elsewhere
  ExpertRows experts;

  int64_t rows() const { return experts.first.back(); }
};

/// How many rows name each expert. topk_idx i64 [R, K] of local experts, −1 for none.
ExpertRows count_expert_rows(const Rows& topk_idx_RK, int64_t experts, int64_t alignment);

/// `singles` has every local expert on a rank of its own. No row names an expert twice.
Expansion expansion_of(const Tensor& topk_idx_RK, const ExpertMap& singles, ExpertRows experts);

/// x [R, …] to [N, …]; rows between experts become 0.
void expand_rows(const Expansion& expansion, const Tensor& x_RD, const Tensor& to_ND);
/// y [N, …] → [R, …]: the sum over a row's places, in slot order (sum_rows).
Tensor reduce_rows(const Expansion& expansion, const Tensor& y_ND);
/// One number for each slot [R, K] → for each place [N], and back; 0 where there is none.
Tensor expand_slots(const Expansion& expansion, const Tensor& weights_RK);
Tensor reduce_slots(const Expansion& expansion, const Tensor& weights_N);

}  // namespace phalanx::ep
