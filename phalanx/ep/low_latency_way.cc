#include "phalanx/ep/low_latency_way.h"

#include <cstring>

#include "phalanx/ep/layout.h"
#include "phalanx/ep/weighted_rows.h"

namespace phalanx::ep {

size_t LowLatencyCore::sent_bytes() const {
  if (!options.fp8) return row_bytes();
  const auto scales = static_cast<size_t>(scale_groups(options.width)) * dtype_size(scales_dtype());
  return static_cast<size_t>(options.width) + scales;
}

Tensor LowLatencyCore::sent(const Tensor& x) const {
  if (!options.fp8) return x;
  const Quantized rows = quantize(x, *options.fp8);
  const Tensor out = Tensor::empty({x.rows(), static_cast<int64_t>(sent_bytes())}, DType::u8);
  std::byte* to = out.raw();
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (const Tensor& part : {rows.q_TD, rows.scales_TS}) {
      const size_t bytes = ep::row_bytes(part);
      std::memcpy(to, part.raw() + static_cast<size_t>(t) * bytes, bytes);
      to += bytes;
    }
  }
  return out;
}

void LowLatencyWay::end_dispatch(int64_t number, const Tensor& rows_L) {
  LowLatencyTurn& turn = core_.turn(number);
  turn.state = LowLatencyTurn::State::received;
  if (!rows_L.defined()) return;
  for (int64_t e = 0; e < core_.local(); ++e) rows_L.data<int32_t>()[e] += turn.count_L.data<int32_t>()[e];
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
