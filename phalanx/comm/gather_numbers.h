// A number of each rank, for decisions that all make alike.
#pragma once

#include <cstdint>
#include <vector>

#include "phalanx/comm/group.h"

namespace phalanx {

/// Every rank's number, in rank order, on every rank. Collective.
inline std::vector<int64_t> gather_numbers(Group& group, int64_t mine) {
  const Tensor all = group.all_gather(Tensor::of(Shape{1}, std::span<const int64_t>(&mine, 1))).wait();
  const std::span<int64_t> numbers = all.span<int64_t>();
  return {numbers.begin(), numbers.end()};
}

}  // namespace phalanx
