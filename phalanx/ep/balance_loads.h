// What the solvers of balance.h share: a layer's loads, and orders of loads with their ties.
#pragma once

#include <bit>
#include <cstdint>
#include <numeric>
#include <span>

#include "phalanx/ep/balance.h"

namespace phalanx::ep {

/// [E] of [L, E].
inline std::span<const float> loads_of_layer(std::span<const float> weight_LE, const BalanceSizes& sizes,
                                             int64_t layer) {
  return weight_LE.subspan(static_cast<size_t>(layer * sizes.experts), static_cast<size_t>(sizes.experts));
}

/// In f64, in order.
inline double sum_of(std::span<const float> loads) {
  return std::accumulate(loads.begin(), loads.end(), 0.0);
}

/// Keys order by load, which is ≥ 0 and so orders as its bits do: ascending by `lighter_key`, descending by
/// `heavier_key`, and of equal loads the lower index comes first in both.
inline uint64_t lighter_key(float load, uint32_t index) {
  return uint64_t{std::bit_cast<uint32_t>(load + 0.0F)} << 32 | index;  // + 0 makes −0 a 0
}
inline uint64_t heavier_key(float load, uint32_t index) { return lighter_key(load, ~index); }
/// The index in a lighter_key, and in a heavier_key.
inline uint32_t index_of_lighter(uint64_t key) { return static_cast<uint32_t>(key); }
inline uint32_t index_of_heavier(uint64_t key) { return ~static_cast<uint32_t>(key); }

}  // namespace phalanx::ep
