// How ops cut their work into pieces for parallel_for. Pieces depend on shapes alone, so bits never depend on
// the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace phalanx {

/// Elements that one piece of an elementwise op covers: far dearer than handing a piece to a thread, and
/// small enough that the activations of a small model split evenly over a few threads.
inline constexpr int64_t kBlockElements = 8192;

/// Rows of `width` elements in one piece.
inline int64_t block_rows(int64_t width) {
  return std::max<int64_t>(1, kBlockElements / std::max<int64_t>(width, 1));
}

/// Rows in one piece whose column sums are kept apart until the end: more, so that these stay few.
inline int64_t block_rows_for_sums(int64_t width) {
  return std::max<int64_t>(16, 2 * kBlockElements / std::max<int64_t>(width, 1));
}

}  // namespace phalanx
