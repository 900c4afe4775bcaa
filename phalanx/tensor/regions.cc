#include "phalanx/tensor/regions.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <new>

namespace phalanx {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kRegion = size_t{32} << 20;
constexpr std::align_val_t kAlignment{64};

// AddressSanitizer sees the ends of pieces that are allocations of their own, and only of those.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kLarge = ~size_t{0};
#else
constexpr size_t kLarge = size_t{64} << 10;
#endif

// Pieces begin at different pages, so that tensors of equal sizes do not meet in the same sets of a cache.
constexpr size_t kPage = 4096;

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Address space that begins at a huge page.
std::span<std::byte> reserve(size_t bytes) {
  void* const memory =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<std::byte*>(memory);
  void* aligned = memory;
  size_t space = bytes + kHugePage;
  std::align(kHugePage, bytes, aligned, space);
  auto* const first = static_cast<std::byte*>(aligned);
  if (first > begin) munmap(begin, static_cast<size_t>(first - begin));
  if (space > bytes) munmap(first + bytes, space - bytes);
  madvise(first, bytes, MADV_HUGEPAGE);  // a wish: where there are none, pages are small
  return {first, bytes};
}

}  // namespace

Regions::~Regions() {
  for (std::byte* piece : small_) ::operator delete(piece, kAlignment);
  for (const std::span<std::byte> region : regions_) {
    if (!region.empty()) munmap(region.data(), region.size());
  }
}

std::byte* Regions::take_small(size_t bytes) {
  small_.push_back(nullptr);
  return small_.back() = static_cast<std::byte*>(::operator new(bytes, kAlignment));
}

std::byte* Regions::take(size_t bytes) {
  if (bytes < kLarge) return take_small(bytes);
  const size_t taken = round_up(bytes, kPage);
  if (taken > rest_.size()) {
    regions_.emplace_back();
    regions_.back() = rest_ = reserve(round_up(std::max(taken, kRegion), kHugePage));
  }
  std::byte* const piece = rest_.data();
  rest_ = rest_.subspan(taken);
  return piece;
}

}  // namespace phalanx
