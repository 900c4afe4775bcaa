// Ranks as processes: every collective, and every way in which a process can go wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <stdexcept>
#include <thread>

#include "tests/comm/collective_checks.h"
#include "tests/comm/shared_value.h"
#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::Each;
using testing::HasSubstr;

Tensor zeros(int64_t n) { return Tensor::zeros({n}, DType::f32); }

TEST(Processes, CollectivesOfOneToEightRanks) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (int ranks = 1; ranks <= 8; ++ranks) {
    run_process_ranks({.ranks = ranks}, [&](Group& world) {
      for (const int64_t n : {0, 1, 37, 1001}) check_collectives(world, {DType::f32, n, seed});
    });
  }
}

TEST(Processes, MessagesLargerThanTheRings) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const DType dtype : {DType::f64, DType::bf16, DType::i64, DType::u8}) {
    run_process_ranks({.ranks = 3}, [&](Group& world) { check_collectives(world, {dtype, 300'001, seed}); });
  }
}

TEST(Processes, ManyOperationsInFlight) {
  run_process_ranks({.ranks = 3}, [](Group& world) {
    std::vector<Work> works;
    std::vector<Tensor> sums;
    for (int i = 0; i < 40; ++i) {
      sums.push_back(Tensor::zeros({i * 97}, DType::f32));
      for (float& v : sums.back().span<float>()) v = static_cast<float>(i + world.rank());
      works.push_back(world.all_reduce(sums.back()));
    }
    for (size_t i = works.size(); i-- > 0;) works[i].wait();  // the last one first
    for (int i = 0; i < 40; ++i) {
      for (const float v : sums[static_cast<size_t>(i)].span<float>()) {
        if (v != static_cast<float>(3 * i + 3)) throw Error("sum {} of operation {}", v, i);
      }
    }
  });
}

TEST(Processes, ARankThatThrowsIsNamedByAll) {
  const Reports r = reports_of_processes({.ranks = 4}, [](Group& world) {
    world.barrier().wait();
    if (world.rank() == 2) throw std::runtime_error("disk full");
    world.all_reduce(zeros(100'000)).wait();
  });
  EXPECT_EQ(r.of_world, "disk full");
  for (const size_t survivor : {0, 1, 3}) {
    EXPECT_THAT(r.of_rank[survivor],
                AllOf(HasSubstr("rank 2: disk full"), HasSubstr(format("[rank {} was in ", survivor))));
  }
}

TEST(Processes, ARankThatEndsEarlyIsNamedAtOnce) {
  const Reports r = reports_of_processes({.ranks = 3}, [](Group& world) {  // no short deadline
    world.all_gather(zeros(5)).wait();
    if (world.rank() == 0) return;
    world.reduce_scatter(zeros(6)).wait();
  });
  EXPECT_EQ(r.of_rank[0], "");
  for (const size_t survivor : {1, 2}) {
    EXPECT_THAT(r.of_rank[survivor],
                HasSubstr("rank 0 has ended without calling reduce_scatter(f32[6], sum) #1 of group world"));
  }
}

TEST(Processes, WhoeverNeverCallsIsNamedAfterTheDeadline) {
  SharedValue<std::atomic<int>> reported;
  const Reports r = reports_of_processes({.ranks = 3, .deadlines = kSoon}, [&](Group& world) {
    world.barrier().wait();
    if (world.rank() == 1) {
      while (reported.value() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    }
    struct Count {
      std::atomic<int>& n;
      ~Count() { ++n; }
    } const count{reported.value()};
    world.all_reduce(zeros(7)).wait();
  });
  for (const size_t survivor : {0, 2}) {
    EXPECT_THAT(r.of_rank[survivor],
                AllOf(HasSubstr("s in all_reduce(f32[7], sum) #1 of group world"),
                      HasSubstr("rank 1 never called it"), HasSubstr("finished barrier #0")));
  }
}

class LostTest : public testing::TestWithParam<int> {};

// Rank 0 is no exception.
TEST_P(LostTest, AKilledRankIsNamedByEverySurvivor) {
  const auto start = std::chrono::steady_clock::now();
  const Reports r = reports_of_processes({.ranks = 3}, [](Group& world) {  // no short deadline
    world.barrier().wait();
    if (world.rank() == GetParam()) raise(SIGKILL);
    world.all_reduce(zeros(100'000)).wait();
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  for (int rank = 0; rank < 3; ++rank) {
    const std::string& report = r.of_rank[static_cast<size_t>(rank)];
    if (rank == GetParam()) {
      EXPECT_EQ(report, format("status {}", 128 + SIGKILL));
    } else {
      EXPECT_THAT(report, AllOf(HasSubstr(format("rank {} (pid ", GetParam())), HasSubstr("is gone"),
                                HasSubstr(format("[rank {} was in ", rank))));
    }
  }
}

TEST_P(LostTest, AStoppedRankIsNamedByEverySurvivor) {
  const Reports r =
      reports_of_processes({.ranks = 3, .deadlines = {.liveness = kSoon.liveness}}, [](Group& world) {
        world.barrier().wait();
        if (world.rank() == GetParam()) raise(SIGSTOP);
        world.all_gather(zeros(9)).wait();
      });
  for (int rank = 0; rank < 3; ++rank) {
    const std::string& report = r.of_rank[static_cast<size_t>(rank)];
    if (rank == GetParam()) {
      EXPECT_EQ(report, format("status {}", 128 + SIGKILL));  // by its parent, in the end
    } else {
      EXPECT_THAT(report, AllOf(HasSubstr(format("rank {} (pid ", GetParam())), HasSubstr("no sign of life"),
                                HasSubstr("all_gather(f32[9]) #1")));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, LostTest, testing::Values(0, 2));

TEST(Processes, ARankThatComputesIsNotTakenForDead) {
  run_process_ranks({.ranks = 2, .deadlines = {.liveness = std::chrono::milliseconds(600)}},
                    [](Group& world) {
                      if (world.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
                      world.barrier().wait();
                    });
}

volatile std::sig_atomic_t interrupts = 0;

TEST(Processes, AnInterruptReachesEveryRankOnceAndThenTheParent) {
  interrupts = 0;
  const auto before = std::signal(SIGINT, [](int) { interrupts = interrupts + 1; });
  SharedValue<std::atomic<int>> ready;
  SharedValue<std::atomic<int>> heard;
  const pid_t parent = getpid();
  run_process_ranks({.ranks = 3}, [&](Group& world) {
    if (++ready.value() == 3) kill(parent, SIGINT);
    while (interrupts == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    world.barrier().wait();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    heard.value() += interrupts;
  });
  EXPECT_EQ(heard.value(), 3);
  EXPECT_EQ(interrupts, 1);
  std::signal(SIGINT, before);
}

// A parent that is killed takes its ranks along.
TEST(Processes, RanksEndWithTheirParent) {
  SharedValue<std::array<std::atomic<pid_t>, 2>> pids;
  const pid_t starter = fork();
  if (starter == 0) {
    run_process_ranks({.ranks = 2}, [&](Group& world) {
      pids.value()[static_cast<size_t>(world.rank())] = getpid();
      std::this_thread::sleep_for(std::chrono::seconds(60));
    });
    _exit(0);
  }
  while (pids.value()[0] == 0 || pids.value()[1] == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  kill(starter, SIGKILL);
  waitpid(starter, nullptr, 0);
  const auto gone = [&] { return kill(pids.value()[0], 0) != 0 && kill(pids.value()[1], 0) != 0; };
  for (int i = 0; i < 500 && !gone(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(gone());
}

}  // namespace
}  // namespace phalanx
