// What dispatch and combine take and give.
#pragma once

#include "phalanx/ep/layout.h"
#include "phalanx/tensor/rows.h"

namespace phalanx::ep {

// T tokens, D width, K top-k, S scales of a row, R received rows, E local experts

inline constexpr int64_t kMostAlignment = 1 << 16;

/// What a rank brings to a dispatch.
struct Tokens {
  Tensor x_TD;             ///< any dtype
  Tensor topk_idx_TK;      ///< i64: global experts; −1: none
  Tensor weights_TK = {};  ///< f32 or f64; undefined: none travel
  Tensor scales_TS = {};   ///< of rows in FP8 (ops/quantize.h): any dtype; undefined: none travel
};

/// Compact rows are by source rank, then token; under etp by its ranks first. Expanded ones are by local
/// expert, each expert's beginning at a multiple of the alignment, then as compact ones; rows between are 0.
struct DispatchOptions {
  /// Of an expert's beginning in ExpertRows, and so in expanded form; at most kMostAlignment.
  int64_t expert_alignment = 1;
  /// Room for so many received rows, whatever comes: shapes then do not depend on what is chosen. At least
  /// the tokens of all ranks. 0: as many as come. Not in expanded form.
  int64_t worst_rows = 0;
  /// A row for each (token, expert), instead of one for each (token, rank). No token names an expert twice.
  bool expand = false;
  /// Also say from where rows come.
  bool sources = false;
  /// All but the rows and their scales: what comes has room for these, which Buffer::dispatch_into fills.
  bool rows_later = false;
  /// In which order combine sums a token's rows. Expanded rows of one rank are always summed by slot.
  /// every_slot: a received row names one expert, the first of a token's the expert of its first slot here.
  PairOrder order = PairOrder::by_rank;
};

/// How many rows name each local expert.
struct ExpertRows {
  PooledVector<int64_t> count;  ///< [E]
  PooledVector<int64_t> first;  ///< [E + 1]: sums of the counts before, each rounded up to the alignment
};

}  // namespace phalanx::ep
