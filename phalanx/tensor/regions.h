// Memory from the system for blocks that are kept: large ones lie in huge pages, where a product's long
// strides miss the TLB less.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace phalanx {

/// Gives out pieces of memory and takes all of them back at its end. Not thread-safe. Large pieces share
/// regions of the address space; of these only what is written takes memory, 2 MiB at a time.
class Regions {
 public:
  Regions() = default;
  ~Regions();
  Regions(const Regions&) = delete;
  Regions& operator=(const Regions&) = delete;

  /// `bytes` of uninitialised memory, 64-byte aligned. Throws std::bad_alloc.
  std::byte* take(size_t bytes);

 private:
  std::byte* take_small(size_t bytes);

  std::vector<std::span<std::byte>> regions_;
  std::vector<std::byte*> small_;
  std::span<std::byte> rest_;  // of the newest region
};

}  // namespace phalanx
