#include "phalanx/comm/transport/byte_ring.h"

#include <algorithm>
#include <cstring>

namespace phalanx {

size_t ByteRing::write(std::span<const std::byte> from) {
  const uint64_t written = positions_->written.load(std::memory_order_relaxed);
  const uint64_t read = positions_->read.load(std::memory_order_seq_cst);
  const size_t n = std::min(from.size(), bytes_.size() - static_cast<size_t>(written - read));
  if (n == 0) return 0;
  const size_t at = written & (bytes_.size() - 1);
  const size_t first = std::min(n, bytes_.size() - at);
  std::memcpy(bytes_.data() + at, from.data(), first);
  if (n > first) std::memcpy(bytes_.data(), from.data() + first, n - first);
  positions_->written.store(written + n, std::memory_order_seq_cst);
  return n;
}

size_t ByteRing::readable() const {
  return static_cast<size_t>(positions_->written.load(std::memory_order_seq_cst) -
                             positions_->read.load(std::memory_order_relaxed));
}

size_t ByteRing::read(std::span<std::byte> to) {
  const uint64_t read = positions_->read.load(std::memory_order_relaxed);
  const size_t n = std::min(to.size(), readable());
  if (n == 0) return 0;
  const size_t at = read & (bytes_.size() - 1);
  const size_t first = std::min(n, bytes_.size() - at);
  std::memcpy(to.data(), bytes_.data() + at, first);
  if (n > first) std::memcpy(to.data() + first, bytes_.data(), n - first);
  positions_->read.store(read + n, std::memory_order_seq_cst);
  return n;
}

}  // namespace phalanx
