// Copies whose result nobody reads soon: written past the caches, so that the old lines are not read first.
#pragma once

#include <cstddef>

namespace phalanx {

/// True if stream_copy may write there: both are multiples of 64.
inline bool can_stream(const void* to, size_t bytes) {
  return (reinterpret_cast<size_t>(to) | bytes) % 64 == 0;
}

/// Copies bytes that do not overlap; can_stream. Other threads see them after this one's stream_fence.
void stream_copy(void* to, const void* from, size_t bytes);
void stream_fence();

}  // namespace phalanx
