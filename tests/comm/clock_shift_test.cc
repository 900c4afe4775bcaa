#include "phalanx/comm/clock_shift.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <random>

#include "phalanx/base/trace.h"
#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

constexpr int kRanks = 5;

// Every host's clock is hours away from the others'. A message cannot take longer than the whole call.
TEST(ClockShift, HostsComeToRankZerosClock) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  constexpr std::array<uint64_t, kRanks> kHost = {7, 9, 7, 11, 9};
  std::array<int64_t, 12> ahead{};
  for (int64_t& a : ahead) a = static_cast<int64_t>(random() % 200'000'000'000'000) - 100'000'000'000'000;
  run_thread_ranks({.ranks = kRanks}, [&](Group& world) {
    const uint64_t host = kHost[static_cast<size_t>(world.rank())];
    const auto now = [&] { return trace_now() + ahead[host]; };
    const int64_t begin = trace_now();
    const int64_t shift = clock_shift(world, host, now);
    const int64_t took = trace_now() - begin;
    EXPECT_LE(std::abs(shift - (ahead[kHost[0]] - ahead[host])), took) << "rank " << world.rank();
    if (host == kHost[0]) {
      EXPECT_EQ(shift, 0);
    }
  });
}

TEST(ClockShift, ProcessesOfOneHostAgree) {
  EXPECT_EQ(clock_host(), clock_host());
  run_thread_ranks({.ranks = 3}, [](Group& world) {
    EXPECT_EQ(clock_shift(world, clock_host(), [] { return trace_now(); }), 0);
  });
}

}  // namespace
}  // namespace phalanx
