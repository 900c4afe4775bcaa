// A stream of bytes from one process to another through memory that both share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "phalanx/comm/bell.h"

namespace phalanx {

/// The two ends' positions; plain memory, so that processes can share it. The bytes lie elsewhere.
struct RingPositions {
  alignas(kApart) std::atomic<uint64_t> written{0};
  alignas(kApart) std::atomic<uint64_t> read{0};
};

/// One writer, one reader; neither ever waits.
class ByteRing {
 public:
  /// `bytes` has a power of two of bytes; both outlive the ring.
  ByteRing(RingPositions& positions, std::span<std::byte> bytes) : positions_(&positions), bytes_(bytes) {}

  /// Writes as much as there is room for; gives how much.
  size_t write(std::span<const std::byte> from);
  /// Bytes that can be read.
  size_t readable() const;
  /// Reads at most to.size() bytes; gives how many.
  size_t read(std::span<std::byte> to);

 private:
  RingPositions* positions_;
  std::span<std::byte> bytes_;
};

}  // namespace phalanx
