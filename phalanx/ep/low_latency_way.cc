#include "phalanx/ep/low_latency_way.h"

#include <cstring>

#include "phalanx/ep/weighted_rows.h"

namespace phalanx::ep {

void LowLatencyWay::end_dispatch(int64_t number, const Tensor& stats) {
  LowLatencyTurn& turn = core_.turn(number);
  turn.state = LowLatencyTurn::State::received;
  if (!stats.defined()) return;
  for (int64_t e = 0; e < core_.local(); ++e) stats.data<int32_t>()[e] += turn.count_L.data<int32_t>()[e];
}

void LowLatencyWay::keep_outputs(const Tensor& y, int64_t number) {
  const LowLatencyTurn& turn = core_.turn(number);
  if (y.raw() == turn.output_LMH.raw()) return;
  for (int64_t e = 0; e < core_.local(); ++e) {
    const size_t at = static_cast<size_t>(e * core_.slots()) * core_.row_bytes();
    const auto rows = static_cast<size_t>(turn.count_L.data<int32_t>()[e]);
    if (rows > 0) std::memcpy(turn.output_LMH.raw() + at, y.raw() + at, rows * core_.row_bytes());
  }
}

void LowLatencyWay::sum(const LowLatencySums& sums, std::span<const std::byte* const> first_row,
                        int64_t number) {
  LowLatencyTurn& turn = core_.turn(number);
  const TokenSets chosen(turn.chosen_EW);
  const auto idx = sums.topk_idx_TK.span<int64_t>();
  const int64_t top_k = sums.topk_idx_TK.dim(1);
  PooledVector<const std::byte*> rows(idx.size(), nullptr);
  for (size_t i = 0; i < idx.size(); ++i) {
    const std::byte* const first = idx[i] < 0 ? nullptr : first_row[static_cast<size_t>(idx[i])];
    const int64_t token = static_cast<int64_t>(i) / top_k;
    if (first) rows[i] = first + static_cast<size_t>(chosen.count_before(idx[i], token)) * core_.row_bytes();
  }
  weighted_rows(rows, sums.weights_TK, sums.out_TH);
  turn.state = LowLatencyTurn::State::free;
}

}  // namespace phalanx::ep
