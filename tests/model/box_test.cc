#include "phalanx/model/box.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace phalanx {
namespace {

using Index = std::vector<int64_t>;

// Every element of a box as (index in the full tensor → place in the box), by counting up.
std::map<Index, int64_t> places(const Box& box) {
  std::map<Index, int64_t> out;
  const int64_t n = box.volume();
  for (int64_t i = 0; i < n; ++i) {
    Index index(static_cast<size_t>(box.begin.rank()));
    int64_t rest = i;
    for (int d = box.begin.rank() - 1; d >= 0; --d) {
      const int64_t extent = box.end[d] - box.begin[d];
      index[static_cast<size_t>(d)] = box.begin[d] + rest % extent;
      rest /= extent;
    }
    out[index] = i;
  }
  return out;
}

Box random_box(const Shape& full, std::mt19937& random) {
  Index begin;
  Index end;
  for (int d = 0; d < full.rank(); ++d) {
    const bool all = random() % 3 == 0;
    int64_t a = all ? 0 : static_cast<int64_t>(random() % static_cast<unsigned>(full[d] + 1));
    int64_t b = all ? full[d] : static_cast<int64_t>(random() % static_cast<unsigned>(full[d] + 1));
    if (a > b) std::swap(a, b);
    begin.push_back(a);
    end.push_back(b);
  }
  return {Shape(std::span<const int64_t>(begin)), Shape(std::span<const int64_t>(end))};
}

Shape random_shape(std::mt19937& random) {
  Index extents(random() % 5);
  for (int64_t& e : extents) e = static_cast<int64_t>(random() % 5);
  return Shape(std::span<const int64_t>(extents));
}

TEST(Box, SharedRunsAreTheSharedElementsOnceInOrderAndAsLongAsTheyCanBe) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int trial = 0; trial < 2000; ++trial) {
    const Shape full = random_shape(random);
    const Box from = random_box(full, random);
    const Box to = random_box(full, random);
    SCOPED_TRACE(format("{} of {} and {}", from.text(), full, to.text()));
    const std::map<Index, int64_t> to_places = places(to);
    std::map<int64_t, int64_t> expected;  // place in from → place in to
    for (const auto& [index, place] : places(from)) {
      const auto found = to_places.find(index);
      if (found != to_places.end()) expected[place] = found->second;
    }
    std::map<int64_t, int64_t> got;
    SharedRun last{-1, -1, 0};
    for_each_shared_run(from, to, [&](const SharedRun& run) {
      EXPECT_GE(run.in_from, last.in_from + last.count);
      EXPECT_GT(run.count, 0);
      for (int64_t i = 0; i < run.count; ++i) got[run.in_from + i] = run.in_to + i;
      last = run;
    });
    EXPECT_EQ(got, expected);
  }
}

TEST(Box, EqualBoxesShareOneRun) {
  int runs = 0;
  const Box box{{1, 0, 2}, {4, 5, 9}};
  for_each_shared_run(box, box, [&](const SharedRun& run) {
    ++runs;
    EXPECT_EQ(run.count, 3 * 5 * 7);
  });
  EXPECT_EQ(runs, 1);
}

TEST(Box, TilingFaults) {
  const Shape full{4, 6};
  EXPECT_EQ(tiling_fault(full, std::vector<Box>{whole(full)}), "");
  EXPECT_EQ(tiling_fault(full, std::vector<Box>{{{0, 0}, {4, 2}}, {{0, 2}, {1, 6}}, {{1, 2}, {4, 6}}}), "");
  EXPECT_EQ(tiling_fault(full, std::vector<Box>{{{0, 0}, {2, 6}}}), "the parts hold 12 of 24 elements");
  EXPECT_EQ(tiling_fault(full, std::vector<Box>{whole(full), {{0, 0}, {1, 1}}}),
            "some elements are in two parts");
  EXPECT_EQ(tiling_fault(full, std::vector<Box>{{{0, 0}, {2, 6}}, {{1, 0}, {3, 6}}}),
            "parts [0, 0]..[2, 6] and [1, 0]..[3, 6] overlap");
  EXPECT_EQ(tiling_fault(Shape{}, std::vector<Box>{whole(Shape{})}), "");
  EXPECT_NE(tiling_fault(Shape{}, {}), "");
  EXPECT_NE(tiling_fault(Shape{}, std::vector<Box>{whole(Shape{}), whole(Shape{})}), "");
  EXPECT_EQ(tiling_fault(Shape{0, 5}, {}), "");
}

TEST(Box, Faults) {
  EXPECT_EQ(box_fault({{1, 2}, {3, 4}}, {3, 4}), "");
  EXPECT_NE(box_fault({{1, 2}, {3, 5}}, {3, 4}), "");
  EXPECT_NE(box_fault({{2, 2}, {1, 4}}, {3, 4}), "");
  EXPECT_NE(box_fault({{1}, {3}}, {3, 4}), "");
}

TEST(Box, OfASliceHoldsTheElementsThatItNames) {
  const LocalSlice slice{.full = {4, 6}, .local = {2, 3}, .begin = {2, 3}};
  const Box box = box_of(slice);
  EXPECT_EQ(box, (Box{{2, 3}, {4, 6}}));
  for (const auto& [index, place] : places(box)) {
    EXPECT_EQ(slice.global_index(place), index[0] * 6 + index[1]);
  }
}

}  // namespace
}  // namespace phalanx
