// Sizes of cached blocks.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>

namespace phalanx {

/// Sizes are rounded up to a quarter of a power of two: at most 25 % is lost, and sizes that vary from step
/// to step (rows an expert received) soon meet only blocks that exist. Large ones, such as weights, their
/// gradients and moments, which do not vary, to a 128th.
struct SizeClass {
  static constexpr size_t kLargeLog = 28;  // more than 2^28 bytes
  static constexpr size_t kCount = 4 * kLargeLog + 128 * (64 - kLargeLog);

  size_t index;  // < kCount
  size_t bytes;
};

/// The class of blocks that hold `bytes`.
inline SizeClass size_class(size_t bytes) {
  const size_t n = std::max<size_t>(bytes, 256);
  const auto log = static_cast<size_t>(std::bit_width(n - 1)) - 1;  // 2^log < n <= 2^(log+1)
  const bool large = log >= SizeClass::kLargeLog;
  const size_t parts = large ? 128 : 4;  // of 2^log
  const size_t part = (size_t{1} << log) / parts;
  const size_t count = (n + part - 1) / part;  // parts + 1 … 2 · parts
  const size_t before = large ? 4 * SizeClass::kLargeLog + 128 * (log - SizeClass::kLargeLog) : 4 * log;
  return {before + count - parts - 1, count * part};
}

}  // namespace phalanx
