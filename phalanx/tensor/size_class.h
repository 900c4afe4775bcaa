// Sizes of cached blocks.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>

namespace phalanx {

/// Sizes are rounded up to a quarter of a power of two: at most 25 % is lost, and sizes that vary from step
/// to step (rows an expert received) soon meet only blocks that exist.
struct SizeClass {
  static constexpr size_t kCount = 256;

  size_t index;  // < kCount
  size_t bytes;
};

/// The class of blocks that hold `bytes`.
inline SizeClass size_class(size_t bytes) {
  const size_t n = std::max<size_t>(bytes, 256);
  const int log = std::bit_width(n - 1) - 1;  // 2^log < n <= 2^(log+1)
  const size_t quarter = size_t{1} << (log - 2);
  const size_t quarters = (n + quarter - 1) / quarter;  // 5..8
  return {static_cast<size_t>(log) * 4 + (quarters - 5), quarters * quarter};
}

}  // namespace phalanx
