// Rows of ranks that share experts, gathered and reduced: against their definition, and the bytes.
#include "phalanx/ep/slices.h"

#include <gtest/gtest.h>

#include <mutex>
#include <numeric>
#include <random>

#include "phalanx/comm/transport/threads.h"

namespace phalanx::ep {
namespace {

constexpr int64_t kWidth = 5;

// Row r of rank k: integers that tell rank, row and column.
Tensor rows_of_rank(int rank, int64_t rows, DType dtype) {
  const Tensor t = Tensor::empty({rows, kWidth}, dtype);
  visit_float(dtype, [&](auto e) {
    auto* v = t.data<decltype(e)>();
    for (int64_t i = 0; i < t.numel(); ++i) v[i] = static_cast<decltype(e)>(1000 * rank + i);
  });
  return t;
}

class SlicesTest : public ::testing::TestWithParam<int> {
 protected:
  SlicesTest() {
    std::mt19937 random(seed_);
    for (int r = 0; r < GetParam(); ++r) rows_.push_back(random() % 3 == 0 ? 0 : 1 + random() % 20);
  }
  int64_t all() const { return std::accumulate(rows_.begin(), rows_.end(), int64_t{0}); }

  const unsigned seed_ = std::random_device{}();
  std::vector<int64_t> rows_;  // of each rank; some have none
};

TEST_P(SlicesTest, GatherBringsTheRowsOfAllRanksInOrder) {
  SCOPED_TRACE(seed_);
  run_thread_ranks({.ranks = GetParam()}, [&](Group& world) {
    Slices slices(&world);
    const int64_t mine = rows_[static_cast<size_t>(world.rank())];
    const PooledVector<int64_t> counts = run(slices.count(mine));
    ASSERT_EQ(std::vector<int64_t>(counts.begin(), counts.end()), rows_);
    const int64_t before = world.traffic().sent;
    const Shape room = {all(), kWidth};
    const PooledVector<Tensor> got = {Tensor::empty(room, DType::f32), Tensor::empty(room, DType::f64)};
    run(slices.gather(
        {rows_of_rank(world.rank(), mine, DType::f32), rows_of_rank(world.rank(), mine, DType::f64)}, counts,
        got));
    EXPECT_EQ(world.traffic().sent - before, (GetParam() - 1) * mine * kWidth * (4 + 8));
    int64_t row = 0;
    for (int r = 0; r < GetParam(); ++r) {
      for (int64_t i = 0; i < rows_[static_cast<size_t>(r)] * kWidth; ++i) {
        ASSERT_EQ(got[0].data<float>()[row * kWidth + i], static_cast<float>(1000 * r + i));
        ASSERT_EQ(got[1].data<double>()[row * kWidth + i], 1000.0 * r + static_cast<double>(i));
      }
      row += rows_[static_cast<size_t>(r)];
    }
  });
}

TEST_P(SlicesTest, ReduceSumsWhatEachMadeOfARanksRows) {
  SCOPED_TRACE(seed_);
  run_thread_ranks({.ranks = GetParam()}, [&](Group& world) {
    Slices slices(&world);
    const auto me = static_cast<size_t>(world.rank());
    const PooledVector<int64_t> counts = run(slices.count(rows_[me]));
    const int64_t before = world.traffic().sent;
    const PooledVector<Tensor> got =
        run(slices.reduce({rows_of_rank(world.rank(), all(), DType::f64)}, counts));
    EXPECT_EQ(world.traffic().sent - before, (all() - rows_[me]) * kWidth * 8);
    ASSERT_EQ(got[0].rows(), rows_[me]);
    const int64_t first = std::accumulate(rows_.begin(), rows_.begin() + world.rank(), int64_t{0}) * kWidth;
    const double ranks = GetParam();
    for (int64_t i = 0; i < got[0].numel(); ++i) {
      const double sum = 1000 * ranks * (ranks - 1) / 2 + ranks * static_cast<double>(first + i);
      ASSERT_EQ(got[0].data<double>()[i], sum);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, SlicesTest, ::testing::Values(1, 2, 3, 4));

}  // namespace
}  // namespace phalanx::ep
