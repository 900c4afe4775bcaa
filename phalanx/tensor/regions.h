// Memory from the system for blocks that are kept: large ones lie in huge pages, where a product's long
// strides miss the TLB less.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "phalanx/tensor/memory_file.h"

namespace phalanx {

/// Gives out pieces of memory and takes all of them back at its end. Not thread-safe. Large pieces share
/// regions of the address space; of these only what is written takes memory, 2 MiB at a time.
///
/// With a file all pieces lie in it, where other processes can map them. Large pieces then take their memory
/// at once, since a file's pages become huge ones only when they are there.
class Regions {
 public:
  Regions() = default;
  /// Null: memory of this process alone.
  explicit Regions(std::unique_ptr<MemoryFile> file) : file_(std::move(file)) {}
  ~Regions();
  Regions(const Regions&) = delete;
  Regions& operator=(const Regions&) = delete;

  /// `bytes` of uninitialised memory, 64-byte aligned. Throws std::bad_alloc.
  std::byte* take(size_t bytes);
  /// Where in the file an address of a piece lies; none without a file, or for another address.
  std::optional<FilePlace> place(const std::byte* address) const;

 private:
  struct Region {
    std::span<std::byte> memory;
    size_t offset = 0;  // in the file
  };

  std::byte* take_alone(size_t bytes);
  std::byte* take_small(size_t bytes);
  std::byte* take_pages(size_t bytes);
  void make_pages_huge();
  void new_region(size_t bytes);

  std::unique_ptr<MemoryFile> file_;
  std::vector<Region> regions_;
  std::vector<std::byte*> alone_;
  std::span<std::byte> rest_;            // of the newest region
  std::span<std::byte> rest_for_small_;  // of a piece that small ones share, in a file
  std::byte* small_pages_ = nullptr;     // in a file: from here to the newest region's end pages are small
};

}  // namespace phalanx
