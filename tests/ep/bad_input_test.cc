// What goes wrong in a dispatch is the same error on every rank, and the buffer works on; what cannot be told
// to the others ends at their deadline.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <thread>

#include "phalanx/base/error.h"
#include "phalanx/comm/failure.h"
#include "phalanx/ep/buffer.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr int kRanks = 3;
constexpr int kExperts = 6;

Tensor choices(std::initializer_list<int64_t> idx, int64_t tokens) {
  const std::vector<int64_t> all(idx);
  return Tensor::of(Shape{tokens, std::ssize(all) / tokens}, std::span<const int64_t>(all));
}

// Two tokens with two experts each.
Tokens sound() {
  return {Tensor::zeros({2, 5}, DType::f32), choices({0, 5, -1, 2}, 2), Tensor::zeros({2, 2}, DType::f32)};
}

class BadInput : public testing::TestWithParam<bool> {
 protected:
  // Rank 1 brings other tokens, options or experts; every rank throws that text, and can go on.
  struct Wrong {
    Tokens tokens = sound();
    DispatchOptions options = {};
    int experts = kExperts;
    bool checked = false;
  };
  static void expect(const Wrong& wrong, const std::string& text) {
    std::atomic<int> threw{0};
    run_thread_ranks({.ranks = kRanks}, GetParam() ? directly() : by_messages(), [&](Group& world) {
      const bool bad = world.rank() == 1;
      Buffer buffer(world, bad ? wrong.experts : kExperts, {.checked = wrong.checked});
      EXPECT_THAT(
          [&] {
            run(bad ? buffer.dispatch(wrong.tokens, wrong.options)
                    : buffer.dispatch(sound(), DispatchOptions()));
          },
          ThrowsMessage<Error>(AllOf(HasSubstr("dispatch: rank 1"), HasSubstr(text))));
      ++threw;
      Buffer another(world, kExperts);
      const Dispatched in = run(another.dispatch(sound(), DispatchOptions()));
      EXPECT_EQ(in.x_RD.count(), kRanks);  // each rank's experts are chosen by one of the two tokens
      run(another.combine(in.x_RD, in.handle, in.weights_RK));
    });
    EXPECT_EQ(threw.load(), kRanks);
  }
};

TEST_P(BadInput, AnExpertThatDoesNotExist) {
  Wrong wrong;
  wrong.tokens.topk_idx_TK = choices({0, 1, 2, 6}, 2);
  expect(wrong, "token 1 chooses expert 6, there are 6");
  wrong.tokens.topk_idx_TK = choices({-2, 1, 2, 3}, 2);
  expect(wrong, "token 0 chooses expert -2, there are 6");
  wrong.tokens.topk_idx_TK = choices({1, std::numeric_limits<int64_t>::min(), 2, 3}, 2);
  expect(wrong, "token 0 chooses expert -9223372036854775808");
}

TEST_P(BadInput, AnExpertTwiceWhereThatIsLookedFor) {
  Wrong wrong;
  wrong.tokens.topk_idx_TK = choices({0, 1, 4, 4}, 2);
  wrong.checked = true;
  expect(wrong, "token 1 chooses expert 4 twice");
  wrong.checked = false;
  wrong.options.expand = true;
  expect(wrong, "token 1 chooses expert 4 twice");
}

TEST_P(BadInput, AWeightThatIsNotANumber) {
  Wrong wrong;
  wrong.tokens.weights_TK.data<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  wrong.checked = true;
  expect(wrong, "token 1 has a weight that is not a number");
}

TEST_P(BadInput, RanksThatDisagree) {
  Wrong wrong;
  wrong.experts = 9;
  expect(wrong, "has experts 9, rank 0 6");
  wrong = {};
  wrong.tokens.topk_idx_TK = choices({0, 1}, 2);
  wrong.tokens.weights_TK = Tensor::zeros({2, 1}, DType::f32);
  expect(wrong, "has top-k 1, rank 0 2");
  wrong = {};
  wrong.tokens.x_TD = Tensor::zeros({2, 6}, DType::f32);
  expect(wrong, "has bytes a row 24, rank 0 20");
  wrong.tokens.x_TD = Tensor::zeros({2, 10}, DType::bf16);  // as many bytes
  expect(wrong, "other dtypes than rank 0");
  wrong = {};
  wrong.tokens.weights_TK = Tensor();
  expect(wrong, "other dtypes than rank 0");
  wrong = {};
  wrong.options.sources = true;
  expect(wrong, "options of another form");
}

TEST_P(BadInput, ArgumentsThatCannotBe) {
  const char* const kElsewhere = "dispatch: rank 1: an argument is wrong";
  const auto with = [&](auto change, const char* text) {
    std::atomic<int> threw{0};
    run_thread_ranks({.ranks = kRanks}, GetParam() ? directly() : by_messages(), [&](Group& world) {
      Buffer buffer(world, kExperts);
      Tokens tokens = sound();
      DispatchOptions options;
      if (world.rank() == 1) change(tokens, options);
      EXPECT_THAT([&] { run(buffer.dispatch(tokens, options)); },
                  ThrowsMessage<Error>(HasSubstr(world.rank() == 1 ? text : kElsewhere)));
      ++threw;
    });
    EXPECT_EQ(threw.load(), kRanks);
  };
  with([](Tokens& t, auto&) { t.x_TD = Tensor(); }, "x is not a tensor of rows");
  with([](Tokens& t, auto&) { t.topk_idx_TK = Tensor::zeros({2, 2}, DType::i32); }, "topk_idx is not an i64");
  with([](Tokens& t, auto&) { t.topk_idx_TK = Tensor::zeros({4}, DType::i64); }, "topk_idx is not an i64");
  with([](Tokens& t, auto&) { t.topk_idx_TK = choices({0, 1}, 1); }, "topk_idx has 1 rows, x 2");
  with([](Tokens& t, auto&) { t.weights_TK = Tensor::zeros({2, 3}, DType::f32); }, "weights are [2, 3]");
  with([](Tokens& t, auto&) { t.weights_TK = Tensor::zeros({2, 2}, DType::bf16); }, "weights are bf16");
  with([](Tokens& t, auto&) { t.scales_TS = Tensor::zeros({3, 1}, DType::f32); }, "scales are [3, 1]");
  with([](auto&, DispatchOptions& o) { o.expert_alignment = 0; }, "expert_alignment is 0");
  with([](auto&, DispatchOptions& o) { o.worst_rows = -1; }, "the worst number of rows is -1");
}

TEST_P(BadInput, TooLittleRoomForTheWorst) {
  Wrong wrong;
  wrong.options.worst_rows = 5;
  expect(wrong, "has room for 5 rows at worst, all ranks have 6 tokens");
}

INSTANTIATE_TEST_SUITE_P(Ways, BadInput, testing::Bool(),
                         [](const auto& info) { return info.param ? "direct" : "messages"; });

TEST(BadHandle, IsAnErrorOnItsRank) {
  run_thread_ranks({.ranks = 1}, [](Group& world) {
    Buffer buffer(world, kExperts);
    Buffer other(world, kExperts);
    const Dispatched in = run(buffer.dispatch(sound(), DispatchOptions()));
    const auto refused = [](auto call, const char* text) {
      EXPECT_THAT([&] { run(call()); }, ThrowsMessage<Error>(HasSubstr(text)));
    };
    refused([&] { return other.combine(in.x_RD, in.handle, Tensor()); }, "not of a dispatch of this buffer");
    refused([&] { return other.dispatch(sound().x_TD, in.handle); }, "not of a dispatch of this buffer");
    refused([&] { return buffer.combine(in.x_RD, Handle(), Tensor()); }, "not of a dispatch of this buffer");
    refused(
        [&] {
          return buffer.dispatch(Tensor::zeros({3, 5}, DType::f32), in.handle);
        },
        "3 rows, the handle's");
    refused([&] { return buffer.combine(all_rows(in.x_RD.data.slice(0, 1)), in.handle, Tensor()); },
            "1 rows, 2 were dispatched");
    refused(
        [&] {
          return buffer.combine(all_rows(Tensor::zeros({2, 5}, DType::i64)), in.handle, Tensor());
        },
        "rows are i64");
    CombineOptions options = {.bias = {Tensor::zeros({2, 4}, DType::f32)}};
    refused([&] { return buffer.combine(in.x_RD, in.handle, options); }, "a bias is f32 [2, 4]");
    options = {.bias = {sound().x_TD, sound().x_TD, sound().x_TD}};
    refused([&] { return buffer.combine(in.x_RD, in.handle, options); }, "3 biases");
    options = {.weights = Tensor::zeros({1, 2}, DType::f32)};
    refused([&] { return buffer.combine(in.x_RD, in.handle, options); }, "weights are f32 [1, 2]");
    // After all that it works, also twice with one handle.
    for (int i = 0; i < 2; ++i) run(buffer.combine(in.x_RD, in.handle, in.weights_RK));
    std::thread([&] {
      EXPECT_THAT([&] { run(buffer.dispatch(sound(), DispatchOptions())); },
                  ThrowsMessage<Error>(HasSubstr("another thread")));
    }).join();
  });
}

// Ranks whose rows for a cached dispatch differ see each other's memory, so all throw.
TEST(BadHandle, RowsThatDifferAreAnErrorWhereMemoryIsShared) {
  std::atomic<int> threw{0};
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    Buffer buffer(world, 2);
    const Tokens tokens = {Tensor::zeros({1, 4}, DType::f32), choices({0, 1}, 1)};
    const Dispatched in = run(buffer.dispatch(tokens, DispatchOptions()));
    const Tensor other = Tensor::zeros({1, 4 + world.rank()}, DType::f32);
    EXPECT_THAT([&] { run(buffer.dispatch(other, in.handle)); },
                ThrowsMessage<Error>(HasSubstr("rank 1 has rows of 20 bytes of f32, rank 0 of 16")));
    ++threw;
    run(buffer.combine(in.x_RD, in.handle, Tensor()));
  });
  EXPECT_EQ(threw.load(), 2);
}

// A rank that goes away, or does not come: the others are told its name and what they were doing.
class Missing : public testing::TestWithParam<std::tuple<bool, bool>> {
 protected:
  // What all other ranks are told when rank 1, after a dispatch, does `instead`.
  static void expect(const std::function<void()>& instead, const char* text) {
    const auto [direct, cached] = GetParam();
    std::atomic<int> told{0};
    const ThreadWorldOptions options = {.ranks = kRanks,
                                        .deadlines = {.progress = std::chrono::milliseconds(400)}};
    const auto body = [&](Group& world) {
      Buffer buffer(world, kExperts);
      try {
        const Dispatched in = run(buffer.dispatch(sound(), DispatchOptions()));
        if (world.rank() == 1) instead();
        if (cached) {
          run(buffer.dispatch(sound().x_TD, in.handle));
        } else {
          run(buffer.dispatch(sound(), DispatchOptions()));
        }
      } catch (const CommError& e) {
        if (world.rank() != 1) {
          EXPECT_THAT(e.what(), AllOf(HasSubstr("rank 1"), HasSubstr(text)));
          ++told;
        }
        throw;
      }
    };
    EXPECT_THROW(run_thread_ranks(options, direct ? directly() : by_messages(), body), Error);
    EXPECT_EQ(told.load(), kRanks - 1);
  }
};

TEST_P(Missing, RankThatFails) {
  expect([] { throw Error("the power went"); }, "the power went");
}

TEST_P(Missing, RankThatIsLate) {
  expect([] { std::this_thread::sleep_for(std::chrono::milliseconds(1500)); }, "never called it");
}

INSTANTIATE_TEST_SUITE_P(Ways, Missing, testing::Combine(testing::Bool(), testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) ? "direct" : "messages") +
                                  (std::get<1>(info.param) ? "_cached" : "");
                         });

}  // namespace
}  // namespace phalanx::ep
