// Addresses from the system that begin at a huge page.
#pragma once

#include <cstddef>
#include <span>

namespace phalanx {

inline constexpr size_t kHugePage = size_t{2} << 20;

/// Private memory of zeros, `bytes` of it, that begins at a huge page. It takes no memory before it is
/// written; the caller unmaps it. Throws std::bad_alloc.
std::span<std::byte> reserve_addresses(size_t bytes);

/// Asks for huge pages in memory that reserve_addresses has given, as it is written.
void prefer_huge_pages(std::span<std::byte> memory);

/// Puts whole huge pages of a mapped file into huge pages now, whatever they hold; they then take their
/// memory. Where the system does not do that (Linux before 6.1, or none are free), pages stay small.
void make_huge_pages(std::span<std::byte> memory);

}  // namespace phalanx
