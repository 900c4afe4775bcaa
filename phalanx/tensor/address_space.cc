#include "phalanx/tensor/address_space.h"

#include <sys/mman.h>

#include <memory>
#include <new>

namespace phalanx {
namespace {

constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ and
constexpr int kCollapse = 25;      // MADV_COLLAPSE, which older headers do not have
constexpr size_t kPage = 4096;

}  // namespace

std::span<std::byte> reserve_addresses(size_t bytes) {
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
  return {first, bytes};
}

void prefer_huge_pages(std::span<std::byte> memory) { madvise(memory.data(), memory.size(), MADV_HUGEPAGE); }

void make_huge_pages(std::span<std::byte> memory) {
  for (size_t at = 0; at < memory.size(); at += kHugePage) {
    madvise(memory.data() + at, kPage, kPopulateRead);  // where no page is, none becomes huge
  }
  madvise(memory.data(), memory.size(), kCollapse);
}

}  // namespace phalanx
