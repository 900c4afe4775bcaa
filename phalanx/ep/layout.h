// Which rows go where: found from the experts that tokens choose, before anything moves.
#pragma once

#include "phalanx/base/pooled.h"
#include "phalanx/ep/expert_map.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx::ep {

/// The (token, rank) pairs of one rank's T tokens, P of them: a token goes once to every rank that has one of
/// its experts. Pairs lie in the order of tokens, those of a token by rank.
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
Layout layout_of(const Tensor& topk_idx_TK, const ExpertMap& experts);

/// to[r] + row · row_bytes = the token's row of x [T, …], for every pair. Rows of one rank must not overlap.
void spread_rows(const Layout& layout, const Tensor& x, std::span<std::byte* const> to);

/// out [T, …] = Σ over a token's pairs, by rank, of the row at from[r] + row · row_bytes. f64 and f32 are
/// summed as they are; bf16 and f16 in f32, rounded once. A token without pairs gets 0.
void sum_rows(const Layout& layout, std::span<const std::byte* const> from, const Tensor& out);

/// Bytes of one row.
inline size_t row_bytes(const Tensor& t) { return static_cast<size_t>(t.row_size()) * dtype_size(t.dtype()); }

/// So many pairs of such rows are written past the caches: they would not be found there anyway.
inline bool past_caches(const Layout& layout, const Tensor& rows) {
  return static_cast<size_t>(layout.pairs()) * row_bytes(rows) >= size_t{8} << 20;
}

}  // namespace phalanx::ep
