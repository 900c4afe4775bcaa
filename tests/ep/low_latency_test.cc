// The low-latency mode: what it brings and sums, its hooks, its two results, what it refuses.
#include "phalanx/ep/low_latency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "phalanx/comm/gather_numbers.h"
#include "phalanx/comm/transport/process.h"
#include "tests/ep/low_latency_cases.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(LowLatency, RandomWorldsDirectly) { check_low_latency(64, directly()); }

TEST(LowLatency, RandomWorldsByMessages) { check_low_latency(32, by_messages()); }

TEST(LowLatency, RandomWorldsOfProcesses) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (int ranks = 1; ranks <= 4; ++ranks) {
    run_process_ranks({.ranks = ranks}, [&](Group& world) {
      for (unsigned i = 0; i < 5; ++i) check_low_latency(world, seed + i);
    });
  }
}

// Rows of one rank, and its slots.
struct Tokens {
  Tensor x;
  Tensor idx;
  Tensor weights;
};

Tokens few_tokens(int rank, int64_t tokens, int64_t width, int64_t experts, int64_t top_k) {
  std::mt19937 random(static_cast<unsigned>(rank) + 5);
  std::normal_distribution<float> normal;
  Tokens out = {Tensor::empty({tokens, width}, DType::bf16), Tensor::empty({tokens, top_k}, DType::i64),
                Tensor::empty({tokens, top_k}, DType::f32)};
  for (bf16& v : out.x.span<bf16>()) v = bf16::from(normal(random));
  for (float& w : out.weights.span<float>()) w = std::abs(normal(random));
  std::vector<int64_t> all(static_cast<size_t>(experts));
  std::iota(all.begin(), all.end(), int64_t{0});
  for (int64_t t = 0; t < tokens; ++t) {
    std::ranges::shuffle(all, random);
    std::copy_n(all.begin(), top_k, out.idx.data<int64_t>() + t * top_k);
  }
  for (int i = 0; i < 10; ++i) out.idx.span<int64_t>()[random() % out.idx.span<int64_t>().size()] = -1;
  return out;
}

// DeepEP's own test: the last columns carry the token's index, the others the rank; experts return their
// rows.
TEST(LowLatency, HoldsWhatDeepEpTests) {
  constexpr int64_t kTokens = 64;
  constexpr int64_t kWidth = 512;
  constexpr int64_t kExperts = 24;
  run_thread_ranks({.ranks = 4}, [&](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(kExperts, 4), {.max_tokens = kTokens, .width = kWidth});
    Tokens mine = few_tokens(world.rank(), kTokens, kWidth, kExperts, 8);
    for (int64_t i = 0; i < kTokens * kWidth; ++i) {
      const int64_t column = i % kWidth;
      if (column == 0) mine.x.data<bf16>()[i] = bf16::from(static_cast<float>(world.rank()));
      if (column >= kWidth - 128) mine.x.data<bf16>()[i] = bf16::from(static_cast<float>(i / kWidth));
    }
    LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
    in.hook.wait();
    const Tensor all = world.all_gather(mine.idx).wait();
    for (int64_t e = 0; e < 6; ++e) {
      const int64_t expert = 6 * world.rank() + e;
      EXPECT_EQ(in.count_L.data<int32_t>()[e], std::ranges::count(all.span<int64_t>(), expert));
      for (int64_t s = 0; s < 4; ++s) {
        const int64_t range = in.handle.range_LR.data<int64_t>()[e * 4 + s];
        EXPECT_EQ(range & 0xffffffff,
                  std::ranges::count(all.slice(s * kTokens, (s + 1) * kTokens).span<int64_t>(), expert));
        for (int64_t row = range >> 32; row < (range >> 32) + (range & 0xffffffff); ++row) {
          const bf16* const x = in.recv_LMH.data<bf16>() + (e * 4 * kTokens + row) * kWidth;
          EXPECT_EQ(x[0].to_float(), static_cast<float>(s));
          for (int64_t c = kWidth - 128; c < kWidth; ++c) {
            ASSERT_EQ(static_cast<int32_t>(x[c].to_float()),
                      in.handle.source_LM.data<int32_t>()[e * 4 * kTokens + row]);
          }
        }
      }
    }
    const Tensor out = buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle).wait();
    double xy = 0;
    double squares = 0;
    for (int64_t i = 0; i < kTokens * kWidth; ++i) {
      double weight = 0;
      for (int64_t k = 0; k < 8; ++k) {
        const int64_t slot = i / kWidth * 8 + k;
        if (mine.idx.data<int64_t>()[slot] >= 0) weight += mine.weights.data<float>()[slot];
      }
      const double x = weight * mine.x.data<bf16>()[i].to_float();
      const double y = out.data<bf16>()[i].to_float();
      ASSERT_FALSE(std::isnan(y));
      xy += x * y;
      squares += x * x + y * y;
    }
    EXPECT_LT(1 - 2 * xy / squares, 1e-5);
  });
}

// Rows so many that they are written past the caches.
TEST(LowLatency, ManyLargeRows) {
  constexpr int64_t kTokens = 150;
  constexpr int64_t kWidth = 8320;
  run_thread_ranks({.ranks = 2, .threads_per_rank = 2}, [&](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(6, 2), {.max_tokens = kTokens, .width = kWidth});
    const Tokens mine = few_tokens(world.rank(), kTokens, kWidth, 6, 4);
    const Tensor all = world.all_gather(mine.x).wait();
    const size_t bytes = kWidth * sizeof(bf16);
    std::vector<Tensor> sums;
    for (const bool in_place : {true, false}) {
      LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
      in.hook.wait();
      const Tensor outputs = buffer.combine_buffer(in.handle);
      for (int64_t e = 0; e < 3; ++e) {
        for (int64_t s = 0; s < 2; ++s) {
          const int64_t range = in.handle.range_LR.data<int64_t>()[2 * e + s];
          for (int64_t i = range >> 32; i < (range >> 32) + (range & 0xffffffff); ++i) {
            const int64_t row = e * 2 * kTokens + i;
            const int64_t token = in.handle.source_LM.data<int32_t>()[row];
            std::byte* const got = in.recv_LMH.raw() + static_cast<size_t>(row) * bytes;
            const std::byte* const sent = all.raw() + static_cast<size_t>(s * kTokens + token) * bytes;
            ASSERT_EQ(std::memcmp(got, sent, bytes), 0) << "expert " << e << ", row " << i;
            if (in_place) std::memcpy(outputs.raw() + static_cast<size_t>(row) * bytes, got, bytes);
          }
        }
      }
      const Tensor& y = in_place ? outputs : in.recv_LMH;
      sums.push_back(buffer.combine(y, mine.idx, mine.weights, in.handle).wait());
    }
    EXPECT_EQ(std::memcmp(sums[0].raw(), sums[1].raw(), sums[0].bytes()), 0);
  });
}

TEST(LowLatency, SizesThatNothingCanHoldAreErrors) {
  constexpr int64_t kInt = 0x7fffffff;
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const WrapTransport& wrap : {directly(), by_messages()}) {
    for (const DType dtype : {DType::bf16, DType::f64}) {
      run_thread_ranks({.ranks = 2}, wrap, [&](Group& world) {
        const auto make = [&](int64_t tokens, int64_t width, const ExpertMap& experts) {
          LowLatencyBuffer(world, experts, {.max_tokens = tokens, .width = width, .dtype = dtype});
        };
        for (const ExpertMap& experts : {ExpertMap::even(4, 2), ExpertMap(std::array<int64_t, 2>{2, 0})}) {
          EXPECT_THROW(make(1, kMost, experts), Error);
          EXPECT_THROW(make(1, int64_t{1} << 61, experts), Error);
          EXPECT_THROW(make(kMost, 1, experts), Error);
        }
        EXPECT_THROW(make(kInt / 2, kInt, ExpertMap::even(4, 2)), Error);
      });
    }
  }
}

// A hook that has not been called keeps nobody from anything.
TEST(LowLatency, NothingWaitsBeforeTheHookIsCalled) {
  for (const WrapTransport& wrap : {directly(), by_messages()}) {
    run_thread_ranks({.ranks = 3}, wrap, [](Group& world) {
      LowLatencyBuffer buffer(world, ExpertMap::even(6, 3), {.max_tokens = 4, .width = 8});
      const Tokens mine = few_tokens(world.rank(), 4, 8, 6, 2);
      if (world.rank() == 2) world.barrier().wait();  // the others dispatch without this one
      LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
      const std::span<int32_t> count = in.count_L.span<int32_t>();
      const auto rows = [&] { return count[0] + count[1]; };
      if (world.rank() != 2) world.barrier().wait();
      if (world.rank() == 0) {
        EXPECT_EQ(rows(), 0);
        world.barrier().wait();  // late: the others have theirs by then
        in.hook.wait();
      } else {
        in.hook.wait();
        world.barrier().wait();
      }
      world.barrier().wait();
      EXPECT_EQ(reduce_number(world, rows()),
                3 * 8 - reduce_number(world, std::ranges::count(mine.idx.span<int64_t>(), int64_t{-1})));
      Hook sums = buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle);
      sums.wait();
    });
  }
}

Task<Tensor> there_and_back(LowLatencyBuffer* buffer, Tokens mine) {
  LowLatencyDispatched in = buffer->dispatch(mine.x, mine.idx);
  co_await in.hook;
  Hook sums = buffer->combine(in.recv_LMH, mine.idx, mine.weights, in.handle);
  Tensor out = co_await sums;
  co_return out;
}

TEST(LowLatency, HooksAreAwaited) {
  run_thread_ranks({.ranks = 2}, [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(4, 2), {.max_tokens = 9, .width = 16});
    const Tokens mine = few_tokens(world.rank(), 9, 16, 4, 2);
    const Tensor one = run(there_and_back(&buffer, mine));
    const auto [a, b] = run(overlap(there_and_back(&buffer, mine), there_and_back(&buffer, mine)));
    EXPECT_EQ(std::memcmp(a.raw(), one.raw(), one.bytes()), 0);
    EXPECT_EQ(std::memcmp(b.raw(), one.raw(), one.bytes()), 0);
  });
}

// One rank, whose arguments are wrong one after the other; then they are right.
TEST(LowLatency, RefusesWhatDoesNotFit) {
  run_thread_ranks({.ranks = 1}, [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(3, 1), {.max_tokens = 2, .width = 4, .dtype = DType::f32});
    const auto f32 = [](const Shape& s) { return Tensor::zeros(s, DType::f32); };
    const auto idx = [](std::vector<int64_t> e) {
      return Tensor::of(Shape{std::ssize(e) / 2, 2}, std::span<const int64_t>(e));
    };
    const auto refused = [](auto f, const char* why) {
      EXPECT_THAT(f, ThrowsMessage<Error>(HasSubstr(why)));
    };
    const auto dispatch = [&](const Tensor& x, const Tensor& i, const char* why) {
      refused([&] { static_cast<void>(buffer.dispatch(x, i)); }, why);
    };
    const Tensor good = idx({0, 2, -1, 1});
    dispatch(f32({2, 5}), good, "x has shape [2, 5], expected [2, 4]");
    dispatch(Tensor::zeros({2, 4}, DType::bf16), good, "x is bf16, expected f32");
    dispatch(f32({3, 4}), idx({0, 1, 0, 1, 0, 1}), "x has 3 tokens, max_tokens is 2");
    dispatch(f32({2, 4}), idx({0, 1}), "topk_idx has shape [1, 2], expected [2, 2]");
    dispatch(f32({2, 4}), f32({2, 2}), "topk_idx is f32, expected i64");
    dispatch(f32({2, 4}), idx({0, 2, 3, 1}), "topk_idx[1, 0] is 3, expected −1 to 2");
    dispatch(f32({2, 4}), idx({0, -2, 1, 1}), "topk_idx[0, 1] is -2, expected −1 to 2");
    refused(
        [&] {
          static_cast<void>(buffer.dispatch(f32({2, 4}), good, {.rows_L = f32({3})}));
        },
        "stats.rows is f32");

    LowLatencyDispatched in = buffer.dispatch(f32({2, 4}), good);
    const Tensor y = f32({3, 2, 4});
    const auto combine = [&](const Tensor& y_LMH, const Tensor& i, const Tensor& w, const char* why) {
      refused([&] { static_cast<void>(buffer.combine(y_LMH, i, w, in.handle)); }, why);
    };
    combine(y, good, f32({2, 2}), "combine of dispatch #0, whose hook has not run");
    in.hook.wait();
    combine(f32({3, 3, 4}), good, f32({2, 2}), "y has shape [3, 3, 4], expected [3, 2, 4]");
    combine(y, good, f32({2, 3}), "weights has shape [2, 3], expected [2, 2]");
    combine(y, good, Tensor::zeros({2, 2}, DType::f64), "weights is f64, expected f32");
    combine(y, idx({0, 2, 0, 1}), f32({2, 2}), "topk_idx[1, 0] is 0, to which dispatch #0 did not send");
    buffer.combine(y, good, f32({2, 2}), in.handle).wait();
    combine(y, good, f32({2, 2}), "handle of dispatch #0: its result is combined already");
    refused([&] { buffer.combine_buffer({}); }, "handle of dispatch #-1");
    refused([&] { buffer.update_mask(0, true); }, "rank 0 is not another rank");
  });
}

TEST(LowLatency, RefusesSizesThatMakeNoSense) {
  const auto with = [](const LowLatencyOptions& o) {
    return [o] {
      run_thread_ranks({.ranks = 2},
                       [&](Group& world) { LowLatencyBuffer(world, ExpertMap::even(4, 2), o); });
    };
  };
  EXPECT_THAT(with({.max_tokens = 0, .width = 8}), ThrowsMessage<Error>(HasSubstr("max_tokens 0")));
  EXPECT_THAT(with({.max_tokens = 4}), ThrowsMessage<Error>(HasSubstr("width 0")));
  EXPECT_THAT(with({.width = 4, .dtype = DType::i32}), ThrowsMessage<Error>(HasSubstr("dtype i32")));
  EXPECT_THAT(with({.width = 4, .dtype = DType::f64, .fp8 = ScaleFormat::f32}),
              ThrowsMessage<Error>(HasSubstr("f64 are not sent in FP8")));
  const auto differ = [] {
    run_thread_ranks({.ranks = 2}, [&](Group& world) {
      LowLatencyBuffer(world, ExpertMap::even(4, 2), {.max_tokens = 4 + world.rank(), .width = 8});
    });
  };
  EXPECT_THAT(differ, ThrowsMessage<Error>(HasSubstr("differ between ranks 0 and 1")));
}

TEST(LowLatency, AThirdResultIsRefused) {
  run_thread_ranks({.ranks = 2}, [](Group& world) {
    LowLatencyBuffer buffer(world, ExpertMap::even(4, 2), {.max_tokens = 3, .width = 4});
    const Tokens mine = few_tokens(world.rank(), 3, 4, 4, 2);
    LowLatencyDispatched first = buffer.dispatch(mine.x, mine.idx);
    LowLatencyDispatched second = buffer.dispatch(mine.x, mine.idx);
    const auto third = [&] { static_cast<void>(buffer.dispatch(mine.x, mine.idx)); };
    const auto refused = ThrowsMessage<Error>(
        HasSubstr("dispatch #2: two results are live; combine that of dispatch #0 first"));
    EXPECT_THAT(third, refused);
    first.hook.wait();
    EXPECT_THAT(third, refused);
    Hook sums = buffer.combine(first.recv_LMH, mine.idx, mine.weights, first.handle);
    EXPECT_THAT(third, refused);
    sums.wait();
    LowLatencyDispatched again = buffer.dispatch(mine.x, mine.idx);
    again.hook.wait();
    second.hook.wait();
    buffer.combine(again.recv_LMH, mine.idx, mine.weights, again.handle).wait();
    buffer.combine(second.recv_LMH, mine.idx, mine.weights, second.handle).wait();
  });
}

TEST(LowLatency, MovesTheBytesOfTheHeader) {
  constexpr int64_t kWidth = 130;
  constexpr int64_t kRow = 2 * kWidth;
  constexpr int64_t kFp8Row = kWidth + 2 * 4;
  for (int form = 0; form < 4; ++form) {
    const bool direct = form % 2 == 0;
    const bool fp8 = form >= 2;
    run_thread_ranks({.ranks = 3}, direct ? directly() : by_messages(), [&](Group& world) {
      LowLatencyOptions options = {.max_tokens = 70, .width = kWidth};
      if (fp8) options.fp8 = ScaleFormat::f32;
      LowLatencyBuffer buffer(world, ExpertMap::even(6, 3), options);
      const Tokens mine = few_tokens(world.rank(), 66, kWidth, 6, 3);
      int64_t pairs = 0;  // (token, expert) or (token, rank) of another rank
      for (int64_t t = 0; t < 66; ++t) {
        std::array<int64_t, 3> of_rank{};
        for (int64_t k = 0; k < 3; ++k) {
          const int64_t e = mine.idx.data<int64_t>()[3 * t + k];
          if (e >= 0) ++of_rank[static_cast<size_t>(e / 2)];
        }
        for (int r = 0; r < 3; ++r) {
          const int64_t n = of_rank[static_cast<size_t>(r)];
          if (r != world.rank()) pairs += direct ? n : std::min<int64_t>(n, 1);
        }
      }
      const int64_t before = buffer.traffic().sent;
      LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
      in.hook.wait();
      const int64_t dispatched = buffer.traffic().sent - before;
      EXPECT_EQ(dispatched, pairs * (fp8 ? kFp8Row : kRow) + 4 * 2 * 8);
      int64_t back = 0;
      for (int64_t i = 0; i < 6; ++i) {
        if (i % 3 != world.rank()) back += in.handle.range_LR.data<int64_t>()[i] & 0xffffffff;
      }
      const Tensor y = Tensor::zeros(in.recv_LMH.shape(), DType::bf16);
      buffer.combine(y, mine.idx, mine.weights, in.handle).wait();
      EXPECT_EQ(buffer.traffic().sent - before - dispatched, back * kRow);
      const Traffic t = buffer.traffic();
      EXPECT_EQ(reduce_number(world, t.sent), reduce_number(world, t.received));
    });
  }
}

TEST(LowLatency, ASteadyStateAllocatesNothing) {
  for (const WrapTransport& wrap : {directly(), by_messages()}) {
    run_thread_ranks({.ranks = 2}, wrap, [](Group& world) {
      LowLatencyBuffer buffer(world, ExpertMap::even(4, 2), {.max_tokens = 32, .width = 64});
      const Tokens mine = few_tokens(world.rank(), 32, 64, 4, 2);
      const Tensor out = Tensor::empty(mine.x.shape(), DType::bf16);
      int64_t before = 0;
      for (int i = 0; i < 40; ++i) {
        if (i == 20) before = cpu_allocator().stats().system_allocations;
        LowLatencyDispatched in = buffer.dispatch(mine.x, mine.idx);
        in.hook.wait();
        buffer.combine(in.recv_LMH, mine.idx, mine.weights, in.handle, out).wait();
      }
      EXPECT_EQ(cpu_allocator().stats().system_allocations, before);
      world.barrier().wait();
    });
  }
}

// By hand.
TEST(LowLatency, SizeHintIsDeepEps) {
  // H = 7168: scales 4 · 56 = 224, d = 16 + 14336 = 14352, c = 14336 + 224 = 14560; 64 · 128 = 8192 slots:
  // 2 · (8192 · 14560 + 8192 · 14560 + 256) = 2 · 238551296.
  EXPECT_EQ(low_latency_size_hint(128, 7168, 8, 64), 477102592);
  EXPECT_EQ(low_latency_size_hint(128, 7168, 64, 64), 477102592);
  // H = 100: no scales, d = 216, c = 200; one expert, 3 tokens: 2 · (max(648, 600) + 3 · 216 + 128).
  EXPECT_EQ(low_latency_size_hint(3, 100, 1, 1), 2848);
  // H = 128: d = 272, c = 260; 40 experts, 1 token: 2 · (10400 + 40 · 272 + 256).
  EXPECT_EQ(low_latency_size_hint(1, 128, 2, 40), 43072);
}

}  // namespace
}  // namespace phalanx::ep
