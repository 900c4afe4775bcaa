// Who has which rows: every row once, sequences where the rows are, and equal work under a causal mask.
#include "phalanx/parallel/context_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "phalanx/base/check.h"

namespace phalanx {
namespace {

using Numbers = std::vector<int64_t>;

Numbers row_numbers(std::span<const RowRun> runs) {
  Numbers rows;
  for (const RowRun& run : runs) {
    for (int64_t i = run.begin; i < run.end; ++i) rows.push_back(i);
  }
  return rows;
}

Numbers numbers(const Tensor& t) {
  const auto all = t.span<const int64_t>();
  return {all.begin(), all.end()};
}

Tensor tensor(const Numbers& values) {
  return Tensor::of(Shape{std::ssize(values)}, std::span<const int64_t>(values));
}

TEST(ContextRows, AreChunksOfBothEnds) {
  const auto rows = [](int cp, int rank, int ulysses, int64_t all) {
    return row_numbers(ContextShare{cp, rank, ulysses}.rows(all));
  };
  EXPECT_EQ(rows(2, 0, 1, 8), (Numbers{0, 1, 6, 7}));
  EXPECT_EQ(rows(2, 1, 1, 8), (Numbers{2, 3, 4, 5}));
  EXPECT_EQ(rows(2, 0, 1, 6), (Numbers{0, 1, 5}));  // of three the first two
  EXPECT_EQ(rows(2, 1, 1, 6), (Numbers{2, 3, 4}));
  EXPECT_EQ(rows(2, 1, 2, 6), (Numbers{3, 4, 5}));  // no ring: one run
  EXPECT_EQ(rows(4, 0, 2, 8), (Numbers{0, 1}));     // the two neighbours share the first rank's rows
  EXPECT_EQ(rows(4, 1, 2, 8), (Numbers{6, 7}));
  EXPECT_EQ(rows(4, 3, 2, 8), (Numbers{4, 5}));
  EXPECT_EQ(rows(6, 1, 3, 12), (Numbers{2, 9}));
  EXPECT_EQ(rows(2, 1, 1, 2), (Numbers{1}));
  EXPECT_EQ(rows(3, 1, 1, 0), Numbers{});
}

// Tensors and offsets of all ranks make up the whole again.
TEST(ContextRows, EveryRowIsSomewhereOnceWithItsSequence) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (const auto& [cp, ulysses] : {std::pair{1, 1}, {2, 1}, {3, 1}, {4, 2}, {6, 3}, {8, 1}, {4, 4}}) {
    const int64_t all = cp * static_cast<int64_t>(random() % 9);
    SCOPED_TRACE(format("cp {}, ulysses {}, {} rows", cp, ulysses, all));
    Numbers offsets = {0, all};
    for (int i = 0; i < 5; ++i)
      offsets.push_back(static_cast<int64_t>(random() % static_cast<size_t>(all + 1)));
    std::ranges::sort(offsets);
    Numbers rows(static_cast<size_t>(all));
    std::iota(rows.begin(), rows.end(), 0);
    Numbers found;
    for (int rank = 0; rank < cp; ++rank) {
      const RowRuns runs = ContextShare{cp, rank, ulysses}.rows(all);
      const Numbers own = numbers(rows_in(tensor(rows), runs));
      EXPECT_EQ(std::ssize(own), all / cp);
      EXPECT_EQ(own, row_numbers(runs));
      EXPECT_TRUE(std::ranges::is_sorted(own));
      const Numbers own_offsets = numbers(offsets_in(tensor(offsets), runs));
      ASSERT_EQ(own_offsets.size(), offsets.size());
      for (size_t b = 0; b < offsets.size(); ++b) {
        EXPECT_EQ(own_offsets[b], std::ranges::count_if(own, [&](int64_t r) { return r < offsets[b]; }));
      }
      found.insert(found.end(), own.begin(), own.end());
    }
    std::ranges::sort(found);
    EXPECT_EQ(found, rows);
  }
}

// (query, key) pairs that a rank of the ring computes, if rank r has the rows runs(r).
template <class F>
std::vector<double> work(std::span<const int64_t> offsets, int ring, F runs) {
  std::vector<double> pairs(static_cast<size_t>(ring));
  for (int rank = 0; rank < ring; ++rank) {
    for (int owner = 0; owner < ring; ++owner) {
      pairs[static_cast<size_t>(rank)] +=
          static_cast<double>(attention_tiles(offsets, runs(rank), runs(owner)).pairs());
    }
  }
  return pairs;
}

TEST(ContextRows, AllRanksOfARingHaveEqualWork) {
  for (const int ring : {2, 4, 8}) {
    const int64_t all = 960;
    const auto zigzag = [&](int rank) { return ring_rows(all, ring, rank); };
    const auto in_order = [&](int rank) { return RowRuns{equal_run(all, rank, ring)}; };
    for (const int64_t length : {960, 480, 320, 96}) {
      Numbers offsets;
      for (int64_t at = 0; at <= all; at += length) offsets.push_back(at);
      const auto [least, most] = std::ranges::minmax(work(offsets, ring, zigzag));
      EXPECT_LT(most / least, 1.02) << ring << " ranks, sequences of " << length;
    }
    // Without, the last rank of one long sequence has 2·ring − 1 times the work of the first.
    const std::vector<double> pairs = work(Numbers{0, all}, ring, in_order);
    EXPECT_NEAR(pairs.back() / pairs.front(), 2 * ring - 1, 0.02 * ring);
  }
}

}  // namespace
}  // namespace phalanx
