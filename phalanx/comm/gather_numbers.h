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

/// Every rank's number reduced to one, on every rank. Collective.
template <class T>
T reduce_number(Group& group, T mine, Reduce reduce = Reduce::sum) {
  const Tensor all = Tensor::of(Shape{1}, std::span<const T>(&mine, 1));
  group.all_reduce(all, reduce).wait();
  return all.span<T>()[0];
}

}  // namespace phalanx
