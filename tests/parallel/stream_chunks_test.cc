// Rows that come and sums that go in chunks: all rows are there once, and sums have the collectives' bits.
#include "phalanx/parallel/stream_chunks.h"

#include <gtest/gtest.h>

#include <random>

#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

constexpr int64_t kColumns = 13;

Tensor random_rows(int64_t rows, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const Tensor x = Tensor::empty({rows, kColumns}, DType::f32);
  for (float& v : x.span<float>()) v = normal(random);
  return x;
}

bool equal(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::ranges::equal(a.span<const float>(), b.span<const float>());
}

struct Case {
  int ranks;
  int64_t rows;  // of each rank
};

class StreamChunks : public testing::TestWithParam<Case> {
 protected:
  unsigned seed_ = std::random_device{}();
};

TEST_P(StreamChunks, OwnRowsComeFirstAndAllComeOnce) {
  SCOPED_TRACE(seed_);
  const auto [ranks, rows] = GetParam();
  run_thread_ranks({.ranks = ranks}, [&, rows = rows](Group& world) {
    const auto me = static_cast<unsigned>(world.rank());
    const Tensor own = random_rows(rows, seed_ + me);
    GatherChunks chunks(world, own, true);
    std::vector<int> come;
    while (chunks.more()) {
      const RowRun run = phalanx::run(chunks.next());
      ASSERT_EQ(run.rows(), rows);
      const int from = rows == 0 ? 0 : static_cast<int>(run.begin / rows);
      come.push_back(from);
      const Tensor sent = random_rows(rows, seed_ + static_cast<unsigned>(from));
      EXPECT_TRUE(equal(chunks.all().slice(run.begin, run.end), sent)) << from;
    }
    EXPECT_EQ(std::ssize(come), world.size());
    if (rows == 0) return;
    EXPECT_EQ(come.front(), world.rank());
    std::ranges::sort(come);
    for (int r = 0; r < world.size(); ++r) EXPECT_EQ(come[static_cast<size_t>(r)], r);
    Work whole = world.all_gather(own);
    const Tensor all = whole.wait();
    EXPECT_TRUE(equal(phalanx::run(chunks.rest()), all));
  });
}

// This rank's summand, written and sent.
Tensor reduced(Group& world, const Tensor& summand, bool scatter, bool cut, int chunks) {
  ReduceChunks sum(world, Tensor::empty(summand.shape(), summand.dtype()), scatter, cut);
  int count = 0;
  for (; sum.more(); ++count) {
    const RowRun rows = sum.rows();
    copy_into(sum.part(), summand.slice(rows.begin, rows.end));
    sum.send();
  }
  EXPECT_EQ(count, chunks);
  return run(sum.sum());
}

TEST_P(StreamChunks, SumsHaveTheBitsOfOneCollective) {
  SCOPED_TRACE(seed_);
  const auto [ranks, rows] = GetParam();
  run_thread_ranks({.ranks = ranks}, [&, rows = rows](Group& world) {
    const Tensor summand = random_rows(rows * world.size(), seed_ + static_cast<unsigned>(world.rank()));
    const Tensor own = reduced(world, summand, true, false, 1);
    const int64_t before = world.traffic().sent;
    EXPECT_TRUE(equal(reduced(world, summand, true, true, world.size()), own));
    EXPECT_EQ(world.traffic().sent - before, (world.size() - 1) * static_cast<int64_t>(own.bytes()));
    // Cut where a chunk is not small, and then without another byte.
    const bool small = summand.bytes() / static_cast<size_t>(world.size()) <= 2048;
    const int64_t between = world.traffic().sent;
    const Tensor all = reduced(world, summand, false, false, 1);
    const int64_t whole = world.traffic().sent - between;
    EXPECT_TRUE(equal(reduced(world, summand, false, true, small ? 1 : world.size()), all));
    const int64_t rounding = 4 * (world.size() - 2) * world.size();
    EXPECT_LE(world.traffic().sent - between - whole, whole + rounding);
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, StreamChunks,
                         testing::Values(Case{2, 1}, Case{2, 97}, Case{3, 0}, Case{3, 5}, Case{3, 61},
                                         Case{4, 43}, Case{5, 7}),
                         [](const auto& info) {
                           return format("{}_of_{}", info.param.ranks, info.param.rows);
                         });

TEST(StreamChunksOfOneRank, AreTheRowsThemselves) {
  const Tensor x = random_rows(3, 1);
  GatherChunks gathered(x);
  EXPECT_EQ(run(gathered.next()).rows(), 3);
  EXPECT_EQ(gathered.all().raw(), x.raw());
  EXPECT_FALSE(gathered.more());
  ReduceChunks sum(x);
  sum.send();
  EXPECT_EQ(run(sum.sum()).raw(), x.raw());
}

}  // namespace
}  // namespace phalanx
