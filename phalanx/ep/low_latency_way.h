// The two ways of low-latency rows: through each other's memory, or by messages. Both give the same bits.
#pragma once

#include <array>

#include "phalanx/ep/low_latency.h"
#include "phalanx/ep/low_latency_turn.h"
#include "phalanx/ep/low_latency_wait.h"

namespace phalanx::ep {

/// What a LowLatencyBuffer is made of, and its way works on.
struct LowLatencyCore {
  Group& group;
  ExpertMap experts;
  LowLatencyOptions options;
  RankMask mask;
  std::array<LowLatencyTurn, 2> turns;

  int rank() const { return group.rank(); }
  int ranks() const { return group.size(); }
  int64_t local() const { return experts.count(rank()); }
  int64_t words() const { return TokenSets::words(options.max_tokens); }
  int64_t slots() const { return group.size() * options.max_tokens; }
  size_t row_bytes() const { return static_cast<size_t>(options.width) * dtype_size(options.dtype); }
  DType scales_dtype() const { return options.fp8 == ScaleFormat::f32 ? DType::f32 : DType::u8; }
  /// Bytes of a row as dispatch sends it.
  size_t sent_bytes() const;
  /// The rows as dispatch sends them: x [T, H] itself, or u8 [T, sent_bytes], scales behind each row.
  Tensor sent(const Tensor& x_TH) const;
  LowLatencyTurn& turn(int64_t number) { return turns[static_cast<size_t>(number % 2)]; }
  /// The sets of a rank's experts among all.
  TokenSets sets_of(const Tensor& chosen_EW, int owner) const {
    return TokenSets(chosen_EW.slice(experts.first(owner), experts.first(owner + 1)));
  }
  /// All rows of some sets.
  static int64_t rows(const TokenSets& sets) {
    int64_t n = 0;
    for (int64_t e = 0; e < sets.sets(); ++e) n += sets.count(e);
    return n;
  }
};

/// The arguments of a combine.
struct LowLatencySums {
  Tensor y_LMH;
  Tensor topk_idx_TK;
  Tensor weights_TK;
  Tensor out_TH;
  Tensor waited_R;
};

/// One of the two. It makes the memory of core.turns; that of `recv`, `count` and `source` is the caller's.
class LowLatencyWay {
 public:
  explicit LowLatencyWay(LowLatencyCore& core) : core_(core) {}
  virtual ~LowLatencyWay() = default;
  /// Dispatch `number`: sends rows (core.sent) as the turn's sets say; then, when the hook is called, places
  /// what comes.
  virtual Task<> dispatch(Call call, Tensor sent_T, LowLatencyStats stats, int64_t number) = 0;
  /// Its combine: sends rows of y; then sums.
  virtual Task<> combine(Call call, LowLatencySums sums, int64_t number) = 0;

 protected:
  /// The hook of a dispatch has run.
  void end_dispatch(int64_t number, const Tensor& rows_L);
  /// out = the weighted sums of rows that begin, for each expert, at first_row[e] (null: none came).
  void sum(const LowLatencySums& sums, std::span<const std::byte* const> first_row_E, int64_t number);

  LowLatencyCore& core_;
};

/// A rank copies its tokens once, says which go where, and rings; each receiver takes its rows from there.
/// Sums are made of rows where the experts have left them. Constructing it is collective.
std::unique_ptr<LowLatencyWay> direct_low_latency(LowLatencyCore& core);
/// Sets and rows in messages, which are sent without waiting; rows to combine go from where they lie.
std::unique_ptr<LowLatencyWay> message_low_latency(LowLatencyCore& core);

}  // namespace phalanx::ep
