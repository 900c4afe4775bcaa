#include "phalanx/tensor/regions.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace phalanx {
namespace {

void expect_pieces_apart(Regions& regions) {
  std::mt19937 random(std::random_device{}());
  std::uniform_int_distribution<size_t> small(1, 1 << 12);
  std::uniform_int_distribution<size_t> large(1 << 16, 3 << 20);
  std::vector<std::pair<std::byte*, size_t>> pieces;
  for (int i = 0; i < 60; ++i) {
    const size_t bytes = i % 3 == 0 ? small(random) : large(random);
    std::byte* const piece = regions.take(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece) % 64, 0u);
    std::fill_n(piece, bytes, static_cast<std::byte>(i));
    pieces.emplace_back(piece, bytes);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto [piece, bytes] = pieces[i];
    EXPECT_EQ(std::count(piece, piece + bytes, static_cast<std::byte>(i)), static_cast<int64_t>(bytes)) << i;
  }
}

TEST(Regions, PiecesAreAlignedAndApart) {
  Regions regions;
  expect_pieces_apart(regions);
  EXPECT_FALSE(regions.place(regions.take(1 << 20)));
}

TEST(Regions, PiecesAreAlignedAndApartInAFile) {
  Regions regions(MemoryFile::create());
  expect_pieces_apart(regions);
}

// Whatever is written through one mapping of a place is read through another.
TEST(Regions, APlaceIsWhereAPieceLiesInTheFile) {
  auto made = MemoryFile::create();
  const auto opened = MemoryFile::open(made->address());
  ASSERT_TRUE(opened);
  Regions regions(std::move(made));
  for (const size_t bytes : {1, 200, 5000, 100'000, 3 << 20, 70 << 20, 64, 5 << 20}) {
    std::byte* const piece = regions.take(bytes);
    const auto place = regions.place(piece + bytes - 1);
    ASSERT_TRUE(place);
    EXPECT_EQ(place->file->address(), opened->address());
    const std::span<std::byte> other = opened->map(place->region, place->region_bytes);
    piece[bytes - 1] = std::byte{42};
    EXPECT_EQ(other[place->offset], std::byte{42});
    other[place->offset] = std::byte{43};
    EXPECT_EQ(piece[bytes - 1], std::byte{43});
    munmap(other.data(), other.size());
  }
  std::byte outside{};
  EXPECT_FALSE(regions.place(&outside));
}

#ifdef __SANITIZE_ADDRESS__
TEST(Regions, AddressSanitizerSeesTheEndsOfPiecesInAFile) {
  Regions regions(MemoryFile::create());
  for (const size_t bytes : {40, 5000, 70'000, 3 << 20}) {
    std::byte* const piece = regions.take(bytes);
    EXPECT_FALSE(__asan_address_is_poisoned(piece + bytes - 1)) << bytes;
    EXPECT_TRUE(__asan_address_is_poisoned(piece + bytes)) << bytes;
    (void)regions.take(bytes);
    EXPECT_TRUE(__asan_address_is_poisoned(piece + bytes)) << bytes;
  }
}
#endif

TEST(Regions, APieceMayBeLargerThanARegion) {
  Regions regions;
  const size_t bytes = size_t{100} << 20;
  std::byte* const piece = regions.take(bytes);
  piece[0] = piece[bytes - 1] = std::byte{7};
  std::byte* const next = regions.take(1 << 20);
  next[0] = std::byte{1};
  EXPECT_EQ(piece[bytes - 1], std::byte{7});
}

TEST(Regions, WhatTheSystemDoesNotHaveIsBadAlloc) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer ends the program instead";
#endif
  Regions regions;
  EXPECT_THROW((void)regions.take(size_t{1} << 60), std::bad_alloc);
  EXPECT_NE(regions.take(1 << 20), nullptr);
  Regions in_file(MemoryFile::create());
  EXPECT_THROW((void)in_file.take(size_t{1} << 60), std::bad_alloc);
  EXPECT_NE(in_file.take(1 << 20), nullptr);
}

}  // namespace
}  // namespace phalanx
