// Which rows go where: found from the experts that tokens choose, before anything moves.
#pragma once

#include "phalanx/base/pooled.h"
#include "phalanx/ep/expert_map.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx::ep {

/// The pairs of a token, in the order in which its rows are summed.
enum class PairOrder : uint8_t {
  by_rank,
  /// By the last of the token's K slots that chooses an expert of the rank (DeepEP's ElasticBuffer).
  by_slot,
  /// A pair for each slot that names an expert, in their order, several of one rank too: more rows, but sums
  /// that do not depend on which rank has which expert.
  every_slot,
};

/// The (token, rank) pairs of one rank's T tokens, P of them: a token goes once to every rank that has one of
/// its experts (but every_slot). Pairs lie in the order of tokens, those of a token in a PairOrder.
struct Layout {
  Tensor first_T;              ///< i64 [T + 1]: the pairs of token t are first[t] … first[t + 1] − 1
  Tensor rank_P;               ///< i32
  Tensor row_P;                ///< i64: how many tokens before this one go to that rank
  PooledVector<int64_t> rows;  ///< [ranks]: how many tokens go to each

  int64_t tokens() const { return first_T.rows() - 1; }
  int64_t pairs() const { return first_T.span<int64_t>().back(); }
};

/// The pairs of one token.
struct Pairs {
  Pairs(const Layout& layout, int64_t token) {
    const int64_t* const first = layout.first_T.data<int64_t>() + token;
    ranks = {layout.rank_P.data<int32_t>() + first[0], static_cast<size_t>(first[1] - first[0])};
    rows = {layout.row_P.data<int64_t>() + first[0], ranks.size()};
  }
  std::span<const int32_t> ranks;
  std::span<const int64_t> rows;
};

/// Of topk_idx i64 [T, K]: expert numbers, or −1 for none.
Layout layout_of(const Tensor& topk_idx_TK, const ExpertMap& experts, PairOrder order = PairOrder::by_rank);

/// How many tokens go where (DeepEP's get_dispatch_layout).
struct DispatchLayout {
  Tensor tokens_per_rank;    ///< i32 [ranks]
  Tensor tokens_per_expert;  ///< i32 [experts]
  Tensor is_token_in_rank;   ///< u8 [T, ranks]: 0 or 1
};
/// Error: topk_idx is not i64 [T, K], or names an expert that does not exist.
DispatchLayout dispatch_layout(const Tensor& topk_idx_TK, const ExpertMap& experts);

/// to[r] + row · row_bytes = the token's row of x [T, …], for every pair. Rows of one rank must not overlap.
void spread_rows(const Layout& layout, const Tensor& x, std::span<std::byte* const> to);

/// out [T, …] = Σ over a token's pairs, in their order, of the row at from[r] + row · row_bytes; before them
/// the token's rows of `first`, of out's shape and dtype. f64 and f32 are summed as they are; bf16 and f16 in
/// f32, rounded once. A token without terms gets 0.
void sum_rows(const Layout& layout, std::span<const std::byte* const> from, const Tensor& out,
              std::span<const Tensor> first = {});
/// Of each rank, where its rows in f8e4m3 begin, and their f32 scales (ops/quantize.h).
struct QuantizedRows {
  std::span<const std::byte* const> q;
  std::span<const std::byte* const> scales;
};
/// The same of such rows; out is f32, bf16 or f16.
void sum_quantized_rows(const Layout& layout, const QuantizedRows& from, const Tensor& out,
                        std::span<const Tensor> first = {});

/// Bytes of one row.
inline size_t row_bytes(const Tensor& t) { return static_cast<size_t>(t.row_size()) * dtype_size(t.dtype()); }

/// So many pairs of such rows are written past the caches: they would not be found there anyway.
inline bool past_caches(const Layout& layout, const Tensor& rows) {
  return static_cast<size_t>(layout.pairs()) * row_bytes(rows) >= size_t{8} << 20;
}

}  // namespace phalanx::ep
