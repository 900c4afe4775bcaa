#include "phalanx/comm/collective_times.h"

#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

class CollectiveTimes : public testing::TestWithParam<int> {};

TEST_P(CollectiveTimes, EveryOperationAtEverySize) {
  const int ranks = GetParam();
  const std::vector<int64_t> sizes = {8, 96, 480 << 10};
  size_t told = 0;
  run_thread_ranks({.ranks = ranks, .threads_per_rank = 1}, [&](Group& world) {
    const std::vector<CollectiveTime> times = measure_collectives(
        world, {.sizes = sizes, .batches = 1, .on_time = [&](const CollectiveTime&) { ++told; }});
    ASSERT_EQ(times.size(), 1 + 5 * sizes.size());
    EXPECT_EQ(times[0].operation, "barrier");
    for (size_t i = 1; i < times.size(); ++i) {
      const CollectiveTime& t = times[i];
      EXPECT_GT(t.seconds, 0) << t.operation;
      EXPECT_GE(t.bytes, sizes[(i - 1) / 5]) << t.operation;
      EXPECT_LT(t.bytes, sizes[(i - 1) / 5] + 8 * ranks) << t.operation;
      EXPECT_DOUBLE_EQ(t.algorithm_bandwidth() * t.seconds, static_cast<double>(t.bytes));
      EXPECT_LE(t.bus_bandwidth(ranks), 2 * t.algorithm_bandwidth()) << t.operation;
      EXPECT_EQ(t.bus_bandwidth(1) > 0, t.operation == "broadcast") << t.operation;
    }
  });
  EXPECT_EQ(told, 1 + 5 * sizes.size());
}

// Bytes that cross between ranks are read once and written once: where nothing is summed, that is all there
// is.
TEST_P(CollectiveTimes, MemoryTrafficIsWhatTheGroupCounts) {
  const int ranks = GetParam();
  const int64_t bytes = 1024 * ranks;
  std::map<std::string, int64_t> counted;
  std::mutex mutex;
  run_thread_ranks({.ranks = ranks, .threads_per_rank = 1}, [&](Group& world) {
    using Kind = Fingerprint::Kind;
    const Tensor whole = Tensor::zeros({bytes / 4}, DType::f32);
    const Tensor part = Tensor::zeros({bytes / ranks / 4}, DType::f32);
    const std::vector<int64_t> rows(static_cast<size_t>(ranks), bytes / ranks / 4);
    world.all_gather(part).wait();
    world.all_to_all(whole, rows, rows).wait();
    world.broadcast(whole, 0).wait();
    const std::lock_guard lock(mutex);
    for (const auto& [name, kind] : {std::pair("all_gather", Kind::all_gather),
                                     {"all_to_all", Kind::all_to_all},
                                     {"broadcast", Kind::broadcast}}) {
      counted[name] += world.traffic(kind).sent + world.traffic(kind).received;
    }
  });
  for (const auto& [name, moved] : counted) {
    EXPECT_EQ((CollectiveTime{.operation = name, .bytes = bytes}.memory_traffic(ranks)), moved) << name;
  }
  const int64_t sums = ranks == 1 ? 0 : 1;
  EXPECT_EQ((CollectiveTime{.operation = "all_reduce", .bytes = bytes}.memory_traffic(ranks)),
            sums * 2 * ranks * bytes);
  EXPECT_EQ((CollectiveTime{.operation = "reduce_scatter", .bytes = bytes}.memory_traffic(ranks)),
            sums * (ranks + 1) * bytes);
  EXPECT_EQ((CollectiveTime{.operation = "barrier"}.memory_traffic(ranks)), 0);
}

INSTANTIATE_TEST_SUITE_P(Ranks, CollectiveTimes, testing::Values(1, 2, 3));

TEST(CollectiveSizes, EndAt64MiB) {
  EXPECT_EQ(collective_sizes().front(), 8);
  EXPECT_EQ(collective_sizes().back(), 64 << 20);
}

}  // namespace
}  // namespace phalanx
