// Collectives on the transports of one process; the whole cross product is in collectives_full_test.cc.
#include <gtest/gtest.h>

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
