// Ranks that are masked, late or dead in the low-latency mode.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <latch>
#include <thread>

#include "phalanx/ep/low_latency.h"
#include "phalanx/ep/low_latency_wait.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr int kRanks = 4;
constexpr int kDead = 2;
constexpr Deadlines kSoon{.progress = std::chrono::milliseconds(400)};
constexpr Deadlines kPatient{.progress = std::chrono::seconds(20)};  // where nobody is to be missed

// Every rank has two experts and two tokens; each token goes to the first expert of every rank, and −1.
struct Mine {
  explicit Mine(int rank) {
    std::ranges::fill(x.span<float>(), static_cast<float>(rank + 1));
    std::ranges::fill(weights.span<float>(), 1.F);
    for (int64_t i = 0; i < idx.numel(); ++i) {
      idx.data<int64_t>()[i] = i % (kRanks + 1) == kRanks ? -1 : 2 * (i % (kRanks + 1));
    }
  }
  Tensor x = Tensor::zeros({2, 3}, DType::f32);
  Tensor idx = Tensor::zeros({2, kRanks + 1}, DType::i64);
  Tensor weights = Tensor::zeros({2, kRanks + 1}, DType::f32);
};

LowLatencyOptions small(std::chrono::milliseconds mask_after = {}) {
  return {.max_tokens = 2, .width = 3, .dtype = DType::f32, .mask_after = mask_after};
}

// One dispatch and combine in which experts return what they got; `alive` ranks take part, and no others'
// rows come.
void round_of(Group& world, LowLatencyBuffer& buffer, int alive) {
  const Mine mine(world.rank());
  LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
  in.hook.wait();
  const Tensor out = buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle).wait();
  PHX_CHECK(in.count_L.span<int32_t>()[0] == 2 * alive && in.count_L.span<int32_t>()[1] == 0,
            "counts {} and {}", in.count_L.span<int32_t>()[0], in.count_L.span<int32_t>()[1]);
  int64_t row = 0;
  for (int s = 0; s < kRanks; ++s) {
    const int64_t n = alive == kRanks || s != kDead ? 2 : 0;
    const int64_t range = in.handle.range_LR.data<int64_t>()[s];
    PHX_CHECK(range == (row << 32 | n), "range {} of rank {}", range, s);
    for (; n > 0 && row < (range >> 32) + n; ++row) {
      PHX_CHECK(in.recv_LMH.data<float>()[row * 3] == static_cast<float>(s + 1), "row {}", row);
    }
  }
  for (const float v : out.span<float>()) {
    PHX_CHECK(v == static_cast<float>(alive * (world.rank() + 1)), "sum {}", v);
  }
}

class LowLatencyMask : public ::testing::TestWithParam<bool> {
 protected:
  static WrapTransport transport() { return GetParam() ? directly() : by_messages(); }
};

INSTANTIATE_TEST_SUITE_P(Ways, LowLatencyMask, ::testing::Bool());

// What a hook waits for is counted where it is caused, and only from when the hook is called.
TEST_P(LowLatencyMask, CountsHowLongEachRankIsWaitedFor) {
  static constexpr std::chrono::milliseconds kLate(60);
  run_thread_ranks({.ranks = kRanks, .deadlines = kPatient}, transport(), [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small());
    const Mine mine(world.rank());
    const auto waited = [](const Tensor& t, int r) { return std::chrono::nanoseconds(t.data<int64_t>()[r]); };
    for (const bool hook_when_all_has_come : {false, true}) {
      const Tensor dispatch_R = Tensor::zeros({kRanks}, DType::i64);
      const Tensor combine_R = Tensor::zeros({kRanks}, DType::i64);
      world.barrier().wait();
      if (world.rank() == 1) std::this_thread::sleep_for(kLate);
      const auto began = RankMask::Clock::now();
      LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx, {.waited_R = dispatch_R});
      if (hook_when_all_has_come) world.barrier().wait();
      in.hook.wait();
      const std::chrono::nanoseconds dispatch = RankMask::Clock::now() - began;
      world.barrier().wait();
      if (world.rank() == 2) std::this_thread::sleep_for(kLate);
      Hook sums = buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle, {}, combine_R);
      if (hook_when_all_has_come) world.barrier().wait();
      sums.wait();
      std::chrono::nanoseconds all{0};
      for (int r = 0; r < kRanks; ++r) all += waited(dispatch_R, r);
      EXPECT_LE(all, dispatch);
      for (const auto& [late, of] : {std::pair(1, dispatch_R), std::pair(2, combine_R)}) {
        EXPECT_EQ(waited(of, world.rank()), std::chrono::nanoseconds(0));
        if (hook_when_all_has_come) {
          EXPECT_LT(waited(of, late), kLate);
        } else if (world.rank() < late) {
          EXPECT_GE(waited(of, late), kLate / 2);
        }
      }
    }
  });
}

// One that has returned, and whom the others have masked, is missed by nobody.
TEST_P(LowLatencyMask, SurvivorsGoOnWithoutAMaskedRank) {
  run_thread_ranks({.ranks = kRanks, .deadlines = kPatient}, transport(), [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small());
    round_of(world, buffer, kRanks);
    world.barrier().wait();
    if (world.rank() == kDead) return;
    buffer.update_mask(kDead, true);
    EXPECT_EQ(buffer.query_mask().data<int32_t>()[kDead], 1);
    EXPECT_EQ(buffer.query_mask().data<int32_t>()[0], 0);
    for (int i = 0; i < 5; ++i) round_of(world, buffer, kRanks - 1);
  });
}

// It comes back when it has made as many calls, masking the others meanwhile.
TEST_P(LowLatencyMask, ACleanMaskBringsThemBack) {
  run_thread_ranks({.ranks = kRanks, .deadlines = kPatient}, transport(), [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small());
    round_of(world, buffer, kRanks);
    world.barrier().wait();
    if (world.rank() == kDead) {
      for (int r = 0; r < kRanks; ++r) {
        if (r != kDead) buffer.update_mask(r, true);
      }
      const Mine mine(kDead);
      LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
      in.hook.wait();
      const Tensor out = buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle).wait();
      EXPECT_EQ(in.count_L.data<int32_t>()[0], 2);
      EXPECT_EQ(out.data<float>()[0], kDead + 1);
    } else {
      buffer.update_mask(kDead, true);
      round_of(world, buffer, kRanks - 1);
    }
    world.barrier().wait();
    buffer.clean_mask();
    EXPECT_THAT(buffer.query_mask().span<int32_t>(), testing::Each(0));
    round_of(world, buffer, kRanks);
  });
}

// Masked between the dispatch and its combine: its experts' rows count nothing.
TEST_P(LowLatencyMask, AMaskHoldsForTheCombineToo) {
  run_thread_ranks({.ranks = kRanks, .deadlines = kPatient}, transport(), [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small());
    const Mine mine(world.rank());
    LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
    in.hook.wait();
    world.barrier().wait();
    if (world.rank() == kDead) {
      for (int r = 0; r < kRanks; ++r) {
        if (r != kDead) buffer.update_mask(r, true);
      }
    } else {
      buffer.update_mask(kDead, true);
    }
    const Tensor out = buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle).wait();
    const int alive = world.rank() == kDead ? 1 : kRanks - 1;
    EXPECT_EQ(out.data<float>()[0], static_cast<float>(alive * (world.rank() + 1)));
  });
}

// With mask_after, whoever ends or does not come is masked, once.
TEST_P(LowLatencyMask, ALateRankIsMasked) {
  run_thread_ranks({.ranks = kRanks, .deadlines = kPatient}, transport(), [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small(std::chrono::seconds(1)));
    round_of(world, buffer, kRanks);
    world.barrier().wait();
    if (world.rank() == kDead) return;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 3; ++i) {
      const Mine mine(world.rank());
      LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
      in.hook.wait();
      const Tensor out = buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle).wait();
      EXPECT_EQ(in.count_L.data<int32_t>()[0], 2 * (kRanks - 1));
      EXPECT_EQ(out.data<float>()[0], static_cast<float>((kRanks - 1) * (world.rank() + 1)));
    }
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
    EXPECT_EQ(buffer.query_mask().data<int32_t>()[kDead], 1);
  });
}

TEST_P(LowLatencyMask, AnEndedRankThatIsNotMaskedIsNamed) {
  const auto ends = [&] {
    run_thread_ranks({.ranks = kRanks, .deadlines = kSoon}, transport(), [](Group& world) {
      LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small());
      round_of(world, buffer, kRanks);
      if (world.rank() != kDead) round_of(world, buffer, kRanks);
    });
  };
  EXPECT_THAT(ends, ThrowsMessage<Error>(AllOf(
                        HasSubstr("rank 2 has ended without calling low_latency_dispatch(f32, rows of 3)"),
                        HasSubstr("of group world, low latency"))));
}

TEST_P(LowLatencyMask, ALateRankThatIsNotMaskedIsNamed) {
  std::latch others_done(kRanks - 1);
  const auto late = [&] {
    run_thread_ranks({.ranks = kRanks, .deadlines = kSoon}, transport(), [&](Group& world) {
      struct Done {
        std::latch* latch;
        ~Done() {
          if (latch) latch->count_down();
        }
      } const done{world.rank() == kDead ? nullptr : &others_done};
      LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small());
      round_of(world, buffer, kRanks);
      if (world.rank() == kDead) {
        others_done.wait();
        return;
      }
      round_of(world, buffer, kRanks);
    });
  };
  EXPECT_THAT(late, ThrowsMessage<Error>(AllOf(HasSubstr("low_latency_dispatch(f32, rows of 3)"),
                                               HasSubstr("rank 2 never called it"))));
}

TEST_P(LowLatencyMask, ARankThatDiesIsNamed) {
  const auto dies = [&] {
    run_thread_ranks({.ranks = kRanks, .deadlines = kSoon}, transport(), [](Group& world) {
      LowLatencyBuffer buffer(world, ExpertMap::even(2 * kRanks, kRanks), small());
      const Mine mine(world.rank());
      LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
      if (world.rank() == kDead) throw std::runtime_error("no power");
      in.hook.wait();
      try {
        buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle).wait();
      } catch (const CommError& e) {
        EXPECT_THAT(e.what(), AllOf(HasSubstr("rank 2: no power"), HasSubstr("low_latency_combine")));
        throw;
      }
    });
  };
  EXPECT_THAT(dies, ThrowsMessage<std::runtime_error>(HasSubstr("no power")));
}

}  // namespace
}  // namespace phalanx::ep
