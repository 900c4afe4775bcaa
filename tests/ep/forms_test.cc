// The forms of a dispatch beside the plain one, on random ranks, experts and tokens, directly and by
// messages: expanded rows, room for the worst, sources, FP8 rows with scales, and quantised sums.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ep/buffer.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

// T tokens of a rank, D width, K top-k, R received rows

struct World {
  int ranks;
  std::vector<int64_t> experts;
  int64_t width;
  int64_t top_k;
  unsigned seed;
};

// Different experts for every token, some slots none; rows of any bf16 numbers from −4 to 4.
Tokens random_tokens(const World& w, int rank) {
  std::mt19937 random(w.seed + 100 * static_cast<unsigned>(rank));
  const int64_t n = random() % 4 == 0 ? 0 : static_cast<int64_t>(random() % 20);
  Tokens t = {Tensor::empty({n, w.width}, DType::bf16), Tensor::empty({n, w.top_k}, DType::i64),
              Tensor::empty({n, w.top_k}, DType::f32)};
  std::uniform_real_distribution<float> value(-4, 4);
  for (bf16& v : t.x_TD.span<bf16>()) v = bf16::from(value(random));
  for (float& v : t.weights_TK.span<float>()) v = value(random);
  std::vector<int64_t> all(
      static_cast<size_t>(std::accumulate(w.experts.begin(), w.experts.end(), int64_t{0})));
  for (int64_t i = 0; i < n; ++i) {
    std::iota(all.begin(), all.end(), 0);
    std::ranges::shuffle(all, random);
    for (int64_t k = 0; k < w.top_k; ++k) {
      const bool none = k >= std::ssize(all) || random() % 5 == 0;
      t.topk_idx_TK.data<int64_t>()[i * w.top_k + k] = none ? -1 : all[static_cast<size_t>(k)];
    }
  }
  return t;
}

class FormsTest : public testing::TestWithParam<bool> {
 protected:
  // On many random worlds.
  static void on_worlds(const std::function<void(Group&, const World&, const Tokens&)>& body) {
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    for (int i = 0; i < 24; ++i) {
      World w = {1 + i % 5, {}, 1 + static_cast<int64_t>(random() % 300), 0, static_cast<unsigned>(random())};
      for (int r = 0; r < w.ranks; ++r) w.experts.push_back(static_cast<int64_t>(random() % 5));
      w.experts[random() % w.experts.size()] += 1;
      w.top_k = 1 + static_cast<int64_t>(random() % 6);
      run_thread_ranks({.ranks = w.ranks}, GetParam() ? directly() : by_messages(),
                       [&](Group& world) { body(world, w, random_tokens(w, world.rank())); });
    }
  }
};

void expect_rows(const Tensor& got, int64_t row, const Tensor& want, int64_t of) {
  const Tensor a = got.slice(row, row + 1);
  const Tensor b = want.slice(of, of + 1);
  ASSERT_EQ(a.bytes(), b.bytes());
  ASSERT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0) << "row " << row;
}

int64_t chosen(const Dispatched& d, int64_t row, int64_t slot) {
  return d.topk_idx_RK.data.data<int64_t>()[row * d.topk_idx_RK.data.dim(1) + slot];
}

// For each expert, its (row, slot)s among compact rows.
std::vector<std::vector<std::pair<int64_t, int64_t>>> rows_of_experts(const Dispatched& d, int64_t experts) {
  std::vector<std::vector<std::pair<int64_t, int64_t>>> out(static_cast<size_t>(experts));
  for (int64_t i = 0; i < d.x_RD.count(); ++i) {
    for (int64_t k = 0; k < d.topk_idx_RK.data.dim(1); ++k) {
      if (chosen(d, i, k) >= 0) out[static_cast<size_t>(chosen(d, i, k))].emplace_back(i, k);
    }
  }
  return out;
}

TEST_P(FormsTest, ExpandedRowsAreTheCompactOnesByExpert) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    const Dispatched compact = run(buffer.dispatch(mine, DispatchOptions()));
    DispatchOptions options = {.expert_alignment = 1 + static_cast<int64_t>(w.seed % 5), .expand = true};
    const Dispatched got = run(buffer.dispatch(mine, options));
    const auto want = rows_of_experts(compact, buffer.local_experts());
    int64_t row = 0;
    ASSERT_EQ(got.expert_rows.count.size(), want.size());
    for (size_t e = 0; e < want.size(); ++e) {
      ASSERT_EQ(got.expert_rows.count[e], std::ssize(want[e]));
      ASSERT_EQ(got.expert_rows.first[e], row);
      for (const auto& [i, k] : want[e]) {
        ASSERT_NO_FATAL_FAILURE(expect_rows(got.x_RD.data, row, compact.x_RD.data, i));
        ASSERT_EQ(got.weights_RK.data<float>()[row], compact.weights_RK.data<float>()[i * w.top_k + k]);
        ++row;
      }
      for (; row % options.expert_alignment != 0; ++row) {
        for (const bf16 v : got.x_RD.data.slice(row, row + 1).span<bf16>()) ASSERT_EQ(v.bits, 0);
        ASSERT_EQ(got.weights_RK.data<float>()[row], 0);
      }
    }
    ASSERT_EQ(got.x_RD.count(), row);
    ASSERT_EQ(got.expert_rows.first.back(), row);
    const Rows again = run(buffer.dispatch(mine.x_TD, got.handle));
    ASSERT_EQ(again.count(), row);
    ASSERT_EQ(std::memcmp(again.data.raw(), got.x_RD.data.raw(), again.live_bytes()), 0);
  });
}

TEST_P(FormsTest, ExpandedRowsAreSummedBySlotInsideARankFirst) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    DispatchOptions plain = {.order = PairOrder::by_slot};
    const Dispatched compact = run(buffer.dispatch(mine, plain));
    DispatchOptions options = {.expert_alignment = 3, .expand = true, .order = PairOrder::by_slot};
    const Dispatched in = run(buffer.dispatch(mine, options));
    std::mt19937 random(w.seed + static_cast<unsigned>(world.rank()));
    std::uniform_real_distribution<float> value(-4, 4);
    const Tensor y = Tensor::empty(in.x_RD.data.shape(), DType::bf16);
    for (bf16& v : y.span<bf16>()) v = bf16::from(value(random));
    const Tensor weights = Tensor::empty({y.rows()}, DType::f32);
    for (float& v : weights.span<float>()) v = value(random);
    // The slow account: each compact row's sum in f32, rounded once, in the order of its slots.
    const Tensor sums = Tensor::zeros(compact.x_RD.data.shape(), DType::bf16);
    const Tensor slots = Tensor::zeros(compact.weights_RK.shape(), DType::f32);
    std::vector<int64_t> next(in.expert_rows.first.begin(), in.expert_rows.first.end());
    for (int64_t i = 0; i < sums.rows(); ++i) {
      std::vector<float> sum(static_cast<size_t>(w.width), 0);
      for (int64_t k = 0; k < w.top_k; ++k) {
        if (chosen(compact, i, k) < 0) continue;
        const int64_t place = next[static_cast<size_t>(chosen(compact, i, k))]++;
        for (size_t d = 0; d < sum.size(); ++d) {
          sum[d] += y.data<bf16>()[place * w.width + static_cast<int64_t>(d)].to_float();
        }
        slots.data<float>()[i * w.top_k + k] = weights.data<float>()[place];
      }
      std::ranges::transform(sum, sums.data<bf16>() + i * w.width, [](float v) { return bf16::from(v); });
    }
    CombineOptions with = {.weights = weights};
    const Combined got = run(buffer.combine(all_rows(y), in.handle, std::move(with)));
    const Combined want = run(buffer.combine(all_rows(sums), compact.handle, slots));
    ASSERT_EQ(std::memcmp(got.x_TD.raw(), want.x_TD.raw(), want.x_TD.bytes()), 0);
    ASSERT_EQ(std::memcmp(got.weights_TK.raw(), want.weights_TK.raw(), want.weights_TK.bytes()), 0);
  });
}

TEST_P(FormsTest, RoomForTheWorstHasTheSameRowsAndNothingBehind) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    const Dispatched plain = run(buffer.dispatch(mine, DispatchOptions()));
    DispatchOptions options = {.worst_rows = 20 * w.ranks + world.rank()};
    const Dispatched got = run(buffer.dispatch(mine, options));
    ASSERT_EQ(got.x_RD.capacity(), options.worst_rows);
    ASSERT_EQ(got.x_RD.count(), plain.x_RD.count());
    ASSERT_EQ(std::memcmp(got.x_RD.data.raw(), plain.x_RD.data.raw(), plain.x_RD.live_bytes()), 0);
    for (int64_t i = 0; i < options.worst_rows; ++i) {
      for (int64_t k = 0; k < w.top_k; ++k) {
        const bool live = i < plain.x_RD.count();
        ASSERT_EQ(chosen(got, i, k), live ? chosen(plain, i, k) : -1);
        const float weight = live ? plain.weights_RK.data<float>()[i * w.top_k + k] : 0;
        ASSERT_EQ(got.weights_RK.data<float>()[i * w.top_k + k], weight);
      }
    }
    const Rows y = {got.x_RD.data, got.x_RD.live};
    const Combined sums = run(buffer.combine(y, got.handle, got.weights_RK));
    const Combined want = run(buffer.combine(plain.x_RD, plain.handle, plain.weights_RK));
    ASSERT_EQ(std::memcmp(sums.x_TD.raw(), want.x_TD.raw(), want.x_TD.bytes()), 0);
    const Rows again = run(buffer.dispatch(mine.x_TD, got.handle));
    ASSERT_EQ(again.capacity(), options.worst_rows);
    ASSERT_EQ(again.count(), plain.x_RD.count());
  });
}

TEST_P(FormsTest, SourcesNameTheRankAndTheToken) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    DispatchOptions options = {.sources = true};
    const Dispatched got = run(buffer.dispatch(mine, options));
    for (int64_t i = 0; i < got.x_RD.count(); ++i) {
      const int64_t* const source = got.sources_R2.data<int64_t>() + 2 * i;
      const Tokens from = random_tokens(w, static_cast<int>(source[0]));
      ASSERT_NO_FATAL_FAILURE(expect_rows(got.x_RD.data, i, from.x_TD, source[1]));
    }
  });
}

void expect_bits(const Tensor& got, const Tensor& want) {
  ASSERT_EQ(got.shape(), want.shape());
  ASSERT_EQ(got.dtype(), want.dtype());
  if (want.bytes() == 0) return;
  ASSERT_EQ(std::memcmp(got.raw(), want.raw(), want.bytes()), 0);
}

TEST_P(FormsTest, RowsMayComeLaterToTheRoomThatIsThere) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    const Quantized q = quantize(mine.x_TD, ScaleFormat::f32);
    Tokens tokens = {q.q_TD, mine.topk_idx_TK, mine.weights_TK, q.scales_TS};
    for (const bool expand : {false, true}) {
      DispatchOptions options = {.expert_alignment = 2, .expand = expand, .sources = true};
      const Dispatched want = run(buffer.dispatch(tokens, options));
      options.rows_later = true;
      const Dispatched got = run(buffer.dispatch(tokens, options));
      ASSERT_NO_FATAL_FAILURE(expect_bits(got.topk_idx_RK.data, want.topk_idx_RK.data));
      ASSERT_NO_FATAL_FAILURE(expect_bits(got.weights_RK, want.weights_RK));
      ASSERT_NO_FATAL_FAILURE(expect_bits(got.sources_R2, want.sources_R2));
      for (int i = 0; i < 2; ++i) {  // and again: the room may be filled any number of times
        run(buffer.dispatch_into(tokens.x_TD, tokens.scales_TS, got.handle, {got.x_RD, got.scales_RS}));
        ASSERT_EQ(got.x_RD.count(), want.x_RD.count());
        ASSERT_NO_FATAL_FAILURE(expect_bits(got.x_RD.data, want.x_RD.data));
        ASSERT_NO_FATAL_FAILURE(expect_bits(got.scales_RS, want.scales_RS));
        std::ranges::fill(got.x_RD.data.span<f8e4m3>(), f8e4m3());
      }
    }
  });
}

TEST_P(FormsTest, SumsGoWhereTheyAreWanted) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    const Dispatched in = run(buffer.dispatch(mine, DispatchOptions()));
    for (const bool quantize : {false, true}) {
      CombineOptions options = {.weights = in.weights_RK, .bias = {mine.x_TD}, .quantize = quantize};
      const Combined want = run(buffer.combine(in.x_RD, in.handle, options));
      options.into = {Tensor::empty(want.x_TD.shape(), DType::bf16),
                      Tensor::empty(want.weights_TK.shape(), DType::f32)};
      const Combined got = run(buffer.combine(in.x_RD, in.handle, options));
      ASSERT_EQ(got.x_TD.raw(), options.into.x_TD.raw());
      ASSERT_EQ(got.weights_TK.raw(), options.into.weights_TK.raw());
      ASSERT_NO_FATAL_FAILURE(expect_bits(got.x_TD, want.x_TD));
      ASSERT_NO_FATAL_FAILURE(expect_bits(got.weights_TK, want.weights_TK));
    }
  });
}

// Refused before anything is sent: the other ranks need not call.
TEST_P(FormsTest, RoomThatDoesNotFitIsRefused) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    const Dispatched in = run(buffer.dispatch(mine, DispatchOptions()));
    const Tensor wider = Tensor::empty({in.x_RD.capacity(), w.width + 1}, DType::bf16);
    const Tensor other = Tensor::empty(in.x_RD.data.shape(), DType::f16);
    for (const Tensor& room : {wider, other, Tensor()}) {
      EXPECT_THROW(run(buffer.dispatch_into(mine.x_TD, Tensor(), in.handle, {{room, in.x_RD.live}, {}})),
                   Error);
    }
    const Tensor more = Tensor::empty({mine.x_TD.rows() + 1, w.width}, DType::bf16);
    EXPECT_THROW(run(buffer.dispatch_into(more, Tensor(), in.handle, {in.x_RD, {}})), Error);
    CombineOptions options = {.into = {more, Tensor()}};
    EXPECT_THROW(run(buffer.combine(in.x_RD, in.handle, options)), Error);
    run(buffer.combine(in.x_RD, in.handle, Tensor()));  // and the buffer works on
  });
}

TEST_P(FormsTest, RowsInFp8TravelWithTheirScales) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::ue8m0}) {
      const Quantized q = quantize(mine.x_TD, format);
      Tokens tokens = {q.q_TD, mine.topk_idx_TK, mine.weights_TK, q.scales_TS};
      for (const bool expand : {false, true}) {
        DispatchOptions options = {.expand = expand};
        const Dispatched plain = run(buffer.dispatch(mine, options));
        const Dispatched got = run(buffer.dispatch(tokens, options));
        const Quantized want =
            quantize(plain.x_RD.data, format);  // row by row: the same as before the journey
        ASSERT_EQ(got.x_RD.count(), plain.x_RD.count());
        ASSERT_EQ(std::memcmp(got.x_RD.data.raw(), want.q_TD.raw(), want.q_TD.bytes()), 0);
        for (int64_t i = 0; i < got.x_RD.count() && !expand; ++i) {
          ASSERT_NO_FATAL_FAILURE(expect_rows(got.scales_RS, i, want.scales_TS, i));
        }
        const Redispatched again = run(buffer.dispatch(q.q_TD, q.scales_TS, got.handle));
        ASSERT_EQ(std::memcmp(again.x_RD.data.raw(), want.q_TD.raw(), want.q_TD.bytes()), 0);
        ASSERT_EQ(std::memcmp(again.scales_RS.raw(), got.scales_RS.raw(), got.scales_RS.bytes()), 0);
      }
    }
  });
}

TEST_P(FormsTest, QuantizedSumsAreTheSumsOfWhatQuantizingLeaves) {
  on_worlds([](Group& world, const World& w, const Tokens& mine) {
    Buffer buffer(world, ExpertMap(w.experts));
    const Dispatched in = run(buffer.dispatch(mine, DispatchOptions()));
    CombineOptions options = {.weights = in.weights_RK, .bias = {mine.x_TD}, .quantize = true};
    const Combined got = run(buffer.combine(in.x_RD, in.handle, options));
    // In f32, where what is left of a row is exact.
    const Tensor left = dequantize(quantize(in.x_RD.data, ScaleFormat::f32), DType::f32);
    const Tensor bias = Tensor::empty(mine.x_TD.shape(), DType::f32);
    std::ranges::transform(mine.x_TD.span<bf16>(), bias.data<float>(), [](bf16 v) { return v.to_float(); });
    CombineOptions exact = {.bias = {bias}};
    const Combined want = run(buffer.combine(all_rows(left), in.handle, exact));
    for (int64_t i = 0; i < got.x_TD.numel(); ++i) {
      ASSERT_EQ(got.x_TD.data<bf16>()[i].bits, bf16::from(want.x_TD.data<float>()[i]).bits) << i;
    }
    for (int64_t i = 0; i < got.weights_TK.numel(); ++i) {
      const bool none = mine.topk_idx_TK.data<int64_t>()[i] < 0;
      ASSERT_EQ(got.weights_TK.data<float>()[i], none ? 0 : mine.weights_TK.data<float>()[i]);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ways, FormsTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "direct" : "messages"; });

}  // namespace
}  // namespace phalanx::ep
