// One of the two results that a LowLatencyBuffer keeps: its memory, and how rows find their places in it.
#pragma once

#include <vector>

#include "phalanx/ep/token_sets.h"

namespace phalanx::ep {

/// Rows of one source rank, as they were sent: of FP8 each with its scales behind it.
struct SourceRows {
  TokenSets chosen;                  ///< for each expert of the receiver
  const std::byte* first = nullptr;  ///< of the rows of tokens 0, 1, …; packed: of those that are in some set
  bool packed = false;
};

/// L local experts, R ranks, M slots of one expert, H elements of a row, E experts, W words of a set.
struct LowLatencyTurn {
  /// free → sent (dispatch) → received (its hook) → returned (combine) → free (its hook)
  enum class State : uint8_t { free, sent, received, returned };

  State state = State::free;
  int64_t number = -1;           ///< of the dispatch whose result this is
  int64_t tokens = 0;            ///< of this rank in it
  std::vector<bool> left_out;    ///< ranks that were masked at the dispatch
  bool dispatch_called = false;  ///< hooks
  bool combine_called = false;
  Tensor chosen_EW;  ///< i64, TokenSets: what goes from this rank to each expert
  Tensor recv_LMH;
  Tensor scales_LMS;  ///< of FP8
  Tensor count_L;     ///< i32
  Tensor source_LM;   ///< i32
  Tensor range_LR;    ///< i64
  Tensor output_LMH;  ///< what the experts make of recv

  /// No rows yet.
  void begin();
  /// The next source's rows, in rank order from 0: ranges, counts, source indices and the rows themselves.
  void place(int source, const SourceRows& rows);
  /// None of that source.
  void skip(int source);
  /// The outputs are y [L, M, H]: copies the rows that count, unless the experts have written them there.
  void keep_outputs(const Tensor& y_LMH);
};

/// The halves of a range.
inline int64_t range_begin(int64_t range) { return range >> 32; }
inline int64_t range_count(int64_t range) { return range & 0xffffffff; }

}  // namespace phalanx::ep
