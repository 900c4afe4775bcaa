// Collectives on the transports of one process; the whole cross product is in collectives_full_test.cc.
#include <gtest/gtest.h>

#include <thread>

#include "phalanx/comm/transport/threads.h"
#include "tests/comm/collective_checks.h"
#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

TEST(Collectives, ThreadsOfOneToEightRanks) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (int ranks = 1; ranks <= 8; ++ranks) {
    run_thread_ranks({.ranks = ranks}, [&](Group& world) {
      for (const int64_t n : {0, 1, 2, 37, 1001}) check_collectives(world, {DType::f32, n, seed});
    });
  }
}

TEST(Collectives, ThreadsOfEveryDtype) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const DType dtype :
       {DType::f64, DType::bf16, DType::f16, DType::i64, DType::i32, DType::i8, DType::u8}) {
    SCOPED_TRACE(dtype_name(dtype));
    run_thread_ranks({.ranks = 3}, [&](Group& world) {
      for (const int64_t n : {1, 130, 40'003}) check_collectives(world, {dtype, n, seed});
    });
  }
}

// Rank 0 does the whole exchange, goes on and reuses its memory before the others have looked at it.
TEST(Collectives, AnAllToAllOutlivesTheRankThatGoesOn) {
  for (const int64_t width : {1, 5000}) {  // copied into the exchange, or read in place
    run_thread_ranks({.ranks = 3}, [&](Group& world) {
      const std::vector<int64_t> rows(3, world.rank() + 1);
      const std::vector<int64_t> expected = {1, 2, 3};
      const Tensor x = Tensor::empty({3 * rows[0], width}, DType::f64);
      std::ranges::fill(x.span<double>(), world.rank());
      Work work = world.all_to_all(x, rows, expected);
      if (world.rank() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const Tensor got = work.wait();
      std::vector<Tensor> reuse;
      for (int i = 0; i < 100; ++i) {
        reuse.push_back(Tensor::empty({6}, DType::i64));
        std::ranges::fill(reuse.back().span<int64_t>(), 77);
      }
      for (int64_t r = 0; r < 6; ++r) {
        EXPECT_EQ(got.span<double>()[static_cast<size_t>(r * width)], r < 1 ? 0 : r < 3 ? 1 : 2);
      }
    });
  }
}

// Every rank reads and writes the others' tensors, of other shapes, and may keep them longer than their
// owner.
TEST(Collectives, SharedTensorsAreTheOthersOwn) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    run_thread_ranks({.ranks = ranks}, [&](Group& world) {
      ASSERT_TRUE(world.shares_memory());
      ASSERT_EQ(world.ranks_of_node(), ranks);
      const int me = world.rank();
      std::vector<Tensor> peers(static_cast<size_t>(ranks));
      for (int round = 0; round < 40; ++round) {
        Tensor mine = Tensor::empty({me + 1, ranks}, DType::i64);
        std::ranges::fill(mine.span<int64_t>(), -1);
        EXPECT_FALSE(world.share(mine, peers).wait().defined());
        EXPECT_EQ(peers[static_cast<size_t>(me)].raw(), mine.raw());
        for (int r = 0; r < ranks; ++r) {
          const Tensor& theirs = peers[static_cast<size_t>(r)];
          ASSERT_EQ(theirs.shape(), Shape({r + 1, ranks}));
          theirs.data<int64_t>()[r * ranks + me] = 100 * round + me;  // their last row
        }
        world.unshare(8 * me, 8).wait();
        mine = Tensor();
        for (int r = 0; r < ranks; ++r) {
          for (int from = 0; from < ranks; ++from) {
            ASSERT_EQ(peers[static_cast<size_t>(r)].data<int64_t>()[r * ranks + from], 100 * round + from);
          }
        }
      }
      EXPECT_EQ(world.traffic(), (Traffic{80, 40 * 8 * me, 40 * 8}));
    });
  }
}

TEST(Collectives, RanksThatShareNoMemorySaySo) {
  run_thread_ranks({.ranks = 2}, faked({}), [](Group& world) {
    EXPECT_FALSE(world.shares_memory());
    EXPECT_EQ(world.ranks_of_node(), 1);
  });
}

// Ranks without a core of their own come late to work that others have done for them.
TEST(Collectives, UnevenRowsOnMoreRanksThanCores) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  run_thread_ranks({.ranks = 6}, [&](Group& world) {
    for (unsigned i = 0; i < 300; ++i) check_all_to_all(world, {DType::f32, 600, seed + i});
  });
}

// Messages that are late and overtake each other change no bit, and no other operation's messages are taken.
TEST(Collectives, UnderTheDelaysOfTheFakeTransport) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const int ranks : {2, 3, 5}) {
    const FakePlan plan{.seed = seed, .max_delay = std::chrono::microseconds(400)};
    run_thread_ranks({.ranks = ranks}, faked(plan), [&](Group& world) {
      for (const int64_t n : {1, 77, 3001}) check_collectives(world, {DType::i32, n, seed});
    });
  }
}

}  // namespace
}  // namespace phalanx
