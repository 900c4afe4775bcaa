#include "phalanx/tensor/regions.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "phalanx/tensor/address_space.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace phalanx {
namespace {

constexpr size_t kRegion = size_t{32} << 20;
constexpr std::align_val_t kAlignment{64};
constexpr size_t kLine = 64;
constexpr size_t kSmallTogether = size_t{256} << 10;

// AddressSanitizer sees the ends of pieces that are allocations of their own, and of those in a file what
// lies between them.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kLargeAlone = ~size_t{0};
constexpr size_t kGap = kLine;
void forbid(std::span<std::byte> memory) { __asan_poison_memory_region(memory.data(), memory.size()); }
void permit(std::span<std::byte> memory) { __asan_unpoison_memory_region(memory.data(), memory.size()); }
#else
constexpr size_t kLargeAlone = size_t{64} << 10;
constexpr size_t kGap = 0;
void forbid(std::span<std::byte>) {}
void permit(std::span<std::byte>) {}
#endif
constexpr size_t kLargeInFile = size_t{64} << 10;

// Pieces begin at different pages, so that tensors of equal sizes do not meet in the same sets of a cache.
constexpr size_t kPage = 4096;

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

std::byte* cut(std::span<std::byte>& rest, size_t bytes) {
  std::byte* const piece = rest.data();
  rest = rest.subspan(bytes);
  return piece;
}

}  // namespace

Regions::~Regions() {
  for (std::byte* piece : alone_) ::operator delete(piece, kAlignment);
  for (const Region& region : regions_) {
    if (region.memory.empty()) continue;
    permit(region.memory);  // whatever comes to lie there
    munmap(region.memory.data(), region.memory.size());
  }
}

std::byte* Regions::take(size_t bytes) {
  if (!file_) return bytes < kLargeAlone ? take_alone(bytes) : take_pages(bytes);
  std::byte* piece = nullptr;
  if (bytes < kLargeInFile) {
    piece = take_small(bytes);
  } else {
    piece = take_pages(bytes + kGap);
    make_pages_huge();
  }
  permit({piece, bytes});
  return piece;
}

std::byte* Regions::take_alone(size_t bytes) {
  alone_.push_back(nullptr);
  return alone_.back() = static_cast<std::byte*>(::operator new(bytes, kAlignment));
}

std::byte* Regions::take_small(size_t bytes) {
  const size_t taken = round_up(bytes + kGap, kLine);
  if (taken > rest_for_small_.size()) rest_for_small_ = {take_pages(kSmallTogether), kSmallTogether};
  return cut(rest_for_small_, taken);
}

std::byte* Regions::take_pages(size_t bytes) {
  const size_t taken = round_up(bytes, kPage);
  if (taken > rest_.size()) new_region(round_up(std::max(taken, kRegion), kHugePage));
  return cut(rest_, taken);
}

// Those of all pieces that were taken.
void Regions::make_pages_huge() {
  if (rest_.data() <= small_pages_) return;
  const size_t until = round_up(static_cast<size_t>(rest_.data() - small_pages_), kHugePage);
  make_huge_pages({small_pages_, until});
  small_pages_ += until;
}

void Regions::new_region(size_t bytes) {
  Region& region = regions_.emplace_back();
  if (file_) {
    region.offset = file_->grow(bytes);
    region.memory = file_->map(region.offset, bytes);
    forbid(region.memory);
  } else {
    region.memory = reserve_addresses(bytes);
  }
  prefer_huge_pages(region.memory);
  rest_ = region.memory;
  small_pages_ = rest_.data();
}

std::optional<FilePlace> Regions::place(const std::byte* address) const {
  if (!file_) return std::nullopt;
  for (const Region& region : regions_) {
    const std::byte* const begin = region.memory.data();
    if (address < begin || address >= begin + region.memory.size()) continue;
    return FilePlace{.file = file_.get(),
                     .region = region.offset,
                     .region_bytes = region.memory.size(),
                     .offset = static_cast<size_t>(address - begin)};
  }
  return std::nullopt;
}

}  // namespace phalanx
