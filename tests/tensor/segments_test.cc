#include "phalanx/tensor/segments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>

namespace phalanx {
namespace {

using Range = Segments::Range;

TEST(Segments, WhatOneSizeGaveBackServesOthers) {
  std::array<std::byte, 100> memory;
  Segments segments;
  EXPECT_EQ(segments.take(1), nullptr);
  segments.add(memory.data(), memory.size(), false);
  std::array<Range*, 4> quarters{};
  for (Range*& r : quarters) r = segments.take(25);
  EXPECT_EQ(segments.take(1), nullptr);
  for (const size_t i : {2, 0, 1}) segments.give(quarters[i]);  // in any order
  Range* const wide = segments.take(75);
  ASSERT_NE(wide, nullptr);
  EXPECT_EQ(wide->data, memory.data());
  EXPECT_EQ(segments.take(1), nullptr);
}

TEST(Segments, TakesTheSmallestRangeThatHoldsIt) {
  std::array<std::byte, 60> memory;
  Segments segments;
  segments.add(memory.data(), 30, false);
  segments.add(memory.data() + 30, 10, false);  // beside the first, but a segment of its own
  segments.add(memory.data() + 40, 20, false);
  EXPECT_EQ(segments.take(9)->data, memory.data() + 30);
  EXPECT_EQ(segments.take(11)->data, memory.data() + 40);
  EXPECT_EQ(segments.take(40), nullptr);
  EXPECT_EQ(segments.take(30)->data, memory.data());
}

TEST(Segments, LeaveWhenAllOfThemIsFree) {
  std::array<std::byte, 60> memory;
  Segments segments;
  segments.add(memory.data(), 20, false);
  segments.add(memory.data() + 20, 30, true);
  segments.add(memory.data() + 50, 10, false);
  Range* const part = segments.take(15);
  std::vector<size_t> left;
  const auto leaves = [&](const std::byte*, size_t bytes) {
    left.push_back(bytes);
    return bytes != 10;
  };
  segments.leave(leaves);
  EXPECT_EQ(left, std::vector<size_t>{10});  // and stays, as the answer was no
  segments.give(part);
  left.clear();
  segments.leave(leaves);
  std::ranges::sort(left);
  EXPECT_EQ(left, (std::vector<size_t>{10, 20}));
  EXPECT_EQ(segments.take(15)->data, memory.data() + 20);
  EXPECT_EQ(segments.take(15)->data, memory.data() + 35);
  EXPECT_EQ(segments.take(10)->data, memory.data() + 50);
  EXPECT_EQ(segments.take(1), nullptr);
}

// Ranges that are out never share a byte nor leave their segment, and all of it comes together in the end.
TEST(Segments, RandomRangesStayApart) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  constexpr size_t kSegment = 1000;
  std::array<std::byte, 3 * kSegment> memory;
  Segments segments;
  for (size_t i = 0; i < 3; ++i) segments.add(memory.data() + i * kSegment, kSegment, false);
  std::map<std::byte*, Range*> out;
  for (int step = 0; step < 20'000; ++step) {
    if (out.empty() || random() % 2 == 0) {
      const size_t bytes = 1 + random() % (random() % 4 == 0 ? kSegment : 50);
      Range* const r = segments.take(bytes);
      if (!r) continue;
      ASSERT_EQ(r->bytes, bytes);
      const auto begin = static_cast<size_t>(r->data - memory.data());
      ASSERT_EQ(begin / kSegment, (begin + bytes - 1) / kSegment);
      ASSERT_TRUE(out.emplace(r->data, r).second);
      const auto at = out.find(r->data);
      if (at != out.begin()) {
        const Range& before = *std::prev(at)->second;
        ASSERT_LE(before.data + before.bytes, r->data);
      }
      if (std::next(at) != out.end()) {
        ASSERT_LE(r->data + bytes, std::next(at)->first);
      }
    } else {
      const auto at = std::next(out.begin(), static_cast<ptrdiff_t>(random() % out.size()));
      segments.give(at->second);
      out.erase(at);
    }
  }
  for (const auto& [data, range] : out) segments.give(range);
  for (int i = 0; i < 3; ++i) EXPECT_NE(segments.take(kSegment), nullptr);
}

}  // namespace
}  // namespace phalanx
