// Every collective on 1–8 ranks × transports × dtypes × sizes, each in place and not, where that is a choice.
#include <gtest/gtest.h>

#include "tests/comm/collective_checks.h"
#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

enum class Kind : uint8_t { threads, delayed_threads, processes };

class CollectivesFull : public testing::TestWithParam<std::tuple<Kind, int>> {
 protected:
  static void run(const RankBody& body, unsigned seed) {
    const auto [kind, ranks] = GetParam();
    const FakePlan plan{.seed = seed, .max_delay = std::chrono::microseconds(200)};
    if (kind == Kind::threads) run_thread_ranks({.ranks = ranks}, body);
    if (kind == Kind::delayed_threads) run_thread_ranks({.ranks = ranks}, faked(plan), body);
    if (kind == Kind::processes) run_process_ranks({.ranks = ranks}, body);
  }
};

TEST_P(CollectivesFull, AreExact) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32, DType::i64}) {
    SCOPED_TRACE(dtype_name(dtype));
    run(
        [&](Group& world) {
          for (const int64_t n : {0, 1, 2, 37, 1001, 300'007}) check_collectives(world, {dtype, n, seed});
        },
        seed);
  }
}

// The same in groups that are not the world: odd ranks, even ranks, neighbours.
TEST_P(CollectivesFull, InSubgroups) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  run(
      [&](Group& world) {
        for (const int parts : {2, 3}) {
          std::vector<int> members;
          for (int r = world.rank() % parts; r < world.size(); r += parts) members.push_back(r);
          Group group = world.subgroup(format("every {} from {}", parts, world.rank() % parts), members);
          for (const int64_t n : {1, 513, 20'001}) check_collectives(group, {DType::f32, n, seed});
        }
      },
      seed);
}

INSTANTIATE_TEST_SUITE_P(Worlds, CollectivesFull,
                         testing::Combine(testing::Values(Kind::threads, Kind::delayed_threads,
                                                          Kind::processes),
                                          testing::Range(1, 9)),
                         [](const auto& test) {
                           const Kind kind = std::get<0>(test.param);
                           return std::string(kind == Kind::threads           ? "Threads"
                                              : kind == Kind::delayed_threads ? "DelayedThreads"
                                                                              : "Processes") +
                                  std::to_string(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace phalanx
