// The middle of measured values.
#pragma once

#include <algorithm>
#include <vector>

namespace phalanx {

/// The middle one in order; of an even number, the upper of the two. Not of none.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::ranges::nth_element(values, middle);
  return *middle;
}

}  // namespace phalanx
