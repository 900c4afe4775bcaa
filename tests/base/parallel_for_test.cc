#include "phalanx/base/parallel_for.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "phalanx/base/between_ranges.h"
#include "phalanx/base/error.h"

namespace phalanx {
namespace {

TEST(ParallelFor, CoversEveryIndexOnceInTheSameRangesForAnyThreads) {
  for (const int threads : {1, 2, 3, 5}) {
    const ThreadScope scope(threads);
    EXPECT_EQ(parallel_threads(), threads);
    for (const int64_t n : {0, 1, 7, 64, 1001}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        std::atomic<int> ranges = 0;
        parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          ++ranges;
          EXPECT_EQ(begin % grain, 0);
          EXPECT_EQ(end, std::min(begin + grain, n));
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
        });
        EXPECT_EQ(ranges, (n + grain - 1) / grain);
        for (const auto& count : seen) EXPECT_EQ(count, 1);
      }
    }
  }
}

TEST(ParallelFor, EveryBodyKnowsItsThread) {
  EXPECT_EQ(parallel_index(), 0);
  const ThreadScope scope(3);
  const std::thread::id caller = std::this_thread::get_id();
  std::array<std::atomic<std::thread::id>, 3> threads{};
  parallel_for(300, 1, [&](int64_t, int64_t) {
    const int index = parallel_index();
    ASSERT_LT(index, 3);
    std::thread::id before{};
    const bool first =
        threads[static_cast<size_t>(index)].compare_exchange_strong(before, std::this_thread::get_id());
    EXPECT_TRUE(first || before == std::this_thread::get_id());
    EXPECT_EQ(index == 0, caller == std::this_thread::get_id());
    // Inside, it is alone.
    EXPECT_EQ(parallel_threads(), 1);
    parallel_for(2, 1, [&](int64_t, int64_t) { EXPECT_EQ(parallel_index(), 0); });
    EXPECT_EQ(parallel_index(), index);
  });
}

// Ranges long enough that the calling thread gets some.
void compute() {
  parallel_for(30, 1, [](int64_t, int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
}

TEST(BetweenRanges, TheInnermostHookOfTheThreadIsCalledWhileItComputes) {
  for (const int threads : {1, 3}) {
    const ThreadScope scope(threads);
    const std::thread::id caller = std::this_thread::get_id();
    int outer = 0;
    int inner = 0;
    const BetweenRanges first([&] { ++outer; });
    {
      const BetweenRanges second([&] {
        EXPECT_EQ(std::this_thread::get_id(), caller);
        ++inner;
      });
      compute();
      EXPECT_GT(inner, 0);
      EXPECT_EQ(outer, 0);
    }
    compute();
    EXPECT_GT(outer, 0);
  }
}

TEST(BetweenRanges, PausesBetweenCalls) {
  int calls = 0;
  const BetweenRanges hook([&] { ++calls; });
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 2000; ++i) parallel_for(10, 1, [](int64_t, int64_t) {});
  const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(calls, 1);
  EXPECT_LE(calls, us.count() / 100 + 1);
}

TEST(BetweenRanges, WhatItThrowsIsThrownByParallelFor) {
  for (const int threads : {1, 3}) {
    const ThreadScope scope(threads);
    const BetweenRanges hook([] { throw Error("gone"); });
    EXPECT_THROW(compute(), Error);
  }
}

TEST(ParallelFor, AnErrorInOneRangeIsThrownAndThePoolStaysUsable) {
  const ThreadScope scope(3);
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(parallel_for(100, 1,
                              [](int64_t begin, int64_t) {
                                if (begin % 10 == 7) throw Error("range {}", begin);
                              }),
                 Error);
    std::atomic<int> count = 0;
    parallel_for(50, 1, [&](int64_t, int64_t) { ++count; });
    EXPECT_EQ(count, 50);
  }
}

TEST(ParallelFor, NestedCallsRunOnTheirBodysThread) {
  const ThreadScope scope(2);
  std::atomic<int> count = 0;
  parallel_for(4, 1, [&](int64_t, int64_t) {
    const auto thread = std::this_thread::get_id();
    parallel_for(5, 1, [&](int64_t, int64_t) {
      EXPECT_EQ(std::this_thread::get_id(), thread);
      ++count;
    });
  });
  EXPECT_EQ(count, 20);
}

TEST(ParallelFor, ScopesNestAndEachThreadHasItsOwn) {
  const ThreadScope outer(2);
  {
    const ThreadScope inner(4);
    EXPECT_EQ(parallel_threads(), 4);
    std::thread([] { EXPECT_EQ(parallel_threads(), 1); }).join();
  }
  EXPECT_EQ(parallel_threads(), 2);
}

}  // namespace
}  // namespace phalanx
