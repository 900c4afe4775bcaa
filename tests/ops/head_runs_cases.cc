// Rows of heads as messages to ranks: every element in its place, and runs that ranks share.
#include "phalanx/ops/head_runs.h"

#include <algorithm>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

struct Case {
  int heads;
  int ranks;
  int64_t head_dim;
  int64_t rows;

  int64_t width() const { return heads / std::min(heads, ranks) * head_dim; }  // of a run
  // The first column of the rank's run.
  int64_t first(int64_t rank) const {
    const int64_t first_head = heads >= ranks ? rank * (heads / ranks) : rank / (ranks / heads);
    return first_head * head_dim;
  }
};

constexpr Case kCases[] = {{1, 1, 3, 5},    {2, 2, 3, 1},  {6, 2, 5, 7},  {4, 4, 1, 3},   {8, 4, 3, 130},
                           {2, 4, 3, 5},    {1, 4, 7, 70}, {2, 8, 2, 0},  {3, 6, 16, 67}, {16, 4, 64, 65},
                           {8, 2, 128, 33}, {4, 8, 8, 9},  {12, 3, 20, 2}};

TEST_P(HeadRuns, EachRankGetsTheColumnsOfItsRun) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : kCases) {
    SCOPED_TRACE(format("{} heads of {}, {} ranks, {} rows", c.heads, c.head_dim, c.ranks, c.rows));
    for (const DType dtype : kFloats) {
      const Tensor x = random.tensor({c.rows, c.heads * c.head_dim}, dtype);
      const Tensor packed = pack_heads(here(x), c.heads, c.ranks);
      ASSERT_EQ(packed.shape(), Shape({c.ranks * c.rows, c.width()}));
      const Values from = values(x);
      const Values got = values(packed);
      Values want;
      for (int64_t rank = 0; rank < c.ranks; ++rank) {
        for (int64_t t = 0; t < c.rows; ++t) {
          const auto run = from.begin() + t * x.dim(1) + c.first(rank);
          want.insert(want.end(), run, run + c.width());
        }
      }
      EXPECT_EQ(got, want);
    }
  }
}

TEST_P(HeadRuns, SharedRunsAreSummedInTheOrderOfRanks) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : kCases) {
    SCOPED_TRACE(format("{} heads of {}, {} ranks, {} rows", c.heads, c.head_dim, c.ranks, c.rows));
    for (const DType dtype : kFloats) {
      const Tensor y = random.tensor({c.ranks * c.rows, c.width()}, dtype);
      const Tensor got = unpack_heads(here(y), c.heads, c.ranks);
      ASSERT_EQ(got.shape(), Shape({c.rows, c.heads * c.head_dim}));
      const Values from = values(y);
      Values want(static_cast<size_t>(got.numel()), 0);
      for (int64_t rank = 0; rank < c.ranks; ++rank) {
        for (int64_t i = 0; i < c.rows * c.width(); ++i) {
          const int64_t to = i / c.width() * got.dim(1) + c.first(rank) + i % c.width();
          double& sum = want[static_cast<size_t>(to)];
          sum += from[static_cast<size_t>(rank * c.rows * c.width() + i)];
          if (dtype == DType::f32) sum = static_cast<float>(sum);
        }
      }
      EXPECT_EQ(values(got), want);
    }
  }
}

TEST_P(HeadRuns, HeadsThatRanksCannotShareAreRefused) {
  const Tensor x = here(Tensor::zeros({4, 12}, DType::f32));
  EXPECT_THROW((void)pack_heads(x, 3, 2), BrokenPromise);
  EXPECT_THROW((void)pack_heads(x, 5, 5), BrokenPromise);
  EXPECT_THROW((void)unpack_heads(x, 2, 3), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
