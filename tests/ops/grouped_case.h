// Grouped products of experts' rows, as tests on a GPU try them.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/ops/reference.h"

namespace phalanx::test {

/// Sizes of one grouped product.
struct GroupedCase {
  std::vector<int64_t> sizes;  // rows of each expert
  int64_t n;
  int64_t k;
  int64_t before = 0;  // rows of no expert
  int64_t behind = 0;

  std::vector<int64_t> offsets() const {
    std::vector<int64_t> o = {before};
    for (const int64_t size : sizes) o.push_back(o.back() + size);
    return o;
  }
  int64_t experts() const { return std::ssize(sizes); }
  int64_t capacity() const { return offsets().back() + behind; }
};

inline std::vector<int64_t> random_sizes(Random& random, int64_t experts, int64_t most) {
  std::vector<int64_t> sizes;
  for (int64_t e = 0; e < experts; ++e) sizes.push_back(random.integer(0, most));
  return sizes;
}

}  // namespace phalanx::test
