// Sums of weighted rows that lie anywhere.
#pragma once

#include <span>

#include "phalanx/tensor/tensor.h"

namespace phalanx::ep {

/// out [T, H] = Σ over k of weights[t, k] · the row at rows[t·K + k] (null: none), which has out's dtype.
/// Begins with 0, goes in the order of k; products and sums are f32 (f64 for f64), each rounded; the sum is
/// rounded once to out's dtype. weights [T, K] are f32 (f64 for f64).
void weighted_rows(std::span<const std::byte* const> rows_TK, const Tensor& weights_TK, const Tensor& out_TH);

}  // namespace phalanx::ep
