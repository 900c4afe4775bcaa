// Dispatch and combine on 1–4 ranks against what one rank that sees all tokens computes. Values are small
// integers, so that sums are exact.
#include "phalanx/ep/buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <random>
#include <utility>

#include "phalanx/base/error.h"
#include "phalanx/comm/mesh.h"
#include "phalanx/comm/transport/fake.h"
#include "phalanx/comm/transport/threads.h"

namespace phalanx::ep {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// T tokens of a rank, D width, K top-k, R received rows

/// Which experts the tokens of a case choose.
enum class Choice : uint8_t {
  any,     // each slot any expert, also twice the same
  holes,   // half of the slots name none
  one,     // all tokens choose expert 0 first, the other slots none
  even,    // experts with odd numbers get no rows
  nothing  // all slots name none
};

/// How rows move: into each other's memory, or by messages that come late.
enum class Way : uint8_t { direct, messages };

struct Case {
  int ranks;
  int local_experts;
  int64_t top_k;
  Choice choice;
  DType dtype = DType::f64;
  Way way = Way::direct;
};

constexpr int64_t kWidth = 7;

Tensor small_integers(const Shape& shape, DType dtype, std::mt19937& random) {
  const Tensor t = Tensor::empty(shape, dtype);
  visit_float(dtype, [&](auto e) {
    for (auto& v : t.span<decltype(e)>())
      v = static_cast<decltype(e)>(static_cast<int>(random() % 201) - 100);
  });
  return t;
}

int64_t choose(const Case& c, int64_t slot, std::mt19937& random) {
  const auto experts = static_cast<uint32_t>(c.ranks * c.local_experts);
  switch (c.choice) {
    case Choice::any:
      return random() % experts;
    case Choice::holes:
      return random() % 2 == 0 ? -1 : random() % experts;
    case Choice::one:
      return slot == 0 ? 0 : -1;
    case Choice::even:
      return random() % ((experts + 1) / 2) * 2;
    case Choice::nothing:
      return -1;
  }
  return -1;
}

// The tokens of every rank; one of several ranks has none.
std::vector<Tokens> all_tokens(const Case& c, std::mt19937& random) {
  std::vector<Tokens> out;
  const auto idle = static_cast<int>(random() % static_cast<uint32_t>(c.ranks));
  for (int r = 0; r < c.ranks; ++r) {
    const int64_t tokens = c.ranks > 1 && r == idle ? 0 : 1 + random() % 23;
    Tokens t = {small_integers({tokens, kWidth}, c.dtype, random),
                Tensor::empty({tokens, c.top_k}, DType::i64),
                small_integers({tokens, c.top_k}, c.dtype, random)};
    for (int64_t i = 0; i < t.topk_idx_TK.numel(); ++i) {
      t.topk_idx_TK.data<int64_t>()[i] = choose(c, i % c.top_k, random);
    }
    out.push_back(std::move(t));
  }
  return out;
}

double at(const Tensor& t, int64_t row, int64_t column) {
  return visit_float(
      t.dtype(), [&](auto e) { return static_cast<double>(t.data<decltype(e)>()[row * t.dim(1) + column]); });
}

// Where a row that some rank receives comes from.
struct Source {
  int rank;
  int64_t token;
};

class BufferTest : public ::testing::TestWithParam<Case> {
 protected:
  BufferTest() {
    std::random_device device;
    seed_ = device();
    random_.seed(seed_);
    tokens_ = all_tokens(GetParam(), random_);
  }

  // The local number of the expert in that slot on `rank`, or −1.
  int64_t local(int rank, const Tensor& idx_TK, int64_t token, int64_t slot) const {
    const int64_t expert = idx_TK.data<int64_t>()[token * GetParam().top_k + slot];
    const int experts = GetParam().local_experts;
    return expert >= 0 && expert / experts == rank ? expert % experts : -1;
  }

  // By source rank, then token: one row for each token that chose an expert of `rank`.
  std::vector<Source> received(int rank) const {
    std::vector<Source> rows;
    for (int s = 0; s < GetParam().ranks; ++s) {
      const Tensor& idx = tokens_[static_cast<size_t>(s)].topk_idx_TK;
      for (int64_t t = 0; t < idx.rows(); ++t) {
        bool comes = false;
        for (int64_t k = 0; k < GetParam().top_k; ++k) comes = comes || local(rank, idx, t, k) >= 0;
        if (comes) rows.push_back({s, t});
      }
    }
    return rows;
  }

  void expect_received(int rank, const Dispatched& got) const {
    const std::vector<Source> rows = received(rank);
    ASSERT_EQ(got.x_RD.count(), static_cast<int64_t>(rows.size()));
    ASSERT_EQ(got.topk_idx_RK.count(), got.x_RD.count());
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      const Tokens& from = tokens_[static_cast<size_t>(rows[i].rank)];
      for (int64_t d = 0; d < kWidth; ++d) {
        ASSERT_EQ(at(got.x_RD.data, row, d), at(from.x_TD, rows[i].token, d)) << "row " << i;
      }
      for (int64_t k = 0; k < GetParam().top_k; ++k) {
        const int64_t expert = local(rank, from.topk_idx_TK, rows[i].token, k);
        ASSERT_EQ(got.topk_idx_RK.data.data<int64_t>()[row * GetParam().top_k + k], expert);
        const double weight = expert < 0 ? 0 : at(from.weights_TK, rows[i].token, k);
        ASSERT_EQ(at(got.weights_RK, row, k), weight);
      }
    }
  }

  void run_ranks(const RankBody& body) const {
    const auto wrap = [&](std::unique_ptr<Transport> inner) {
      if (GetParam().way == Way::direct) return inner;
      return fake_transport(std::move(inner), {.seed = seed_, .max_delay = std::chrono::microseconds(100)});
    };
    run_thread_ranks({.ranks = GetParam().ranks}, wrap, body);
  }

  unsigned seed_ = 0;
  std::mt19937 random_;
  std::vector<Tokens> tokens_;
};

TEST_P(BufferTest, DispatchBringsEveryRowToItsExpertsInOrder) {
  SCOPED_TRACE(seed_);
  run_ranks([&](Group& world) {
    Buffer buffer(world, GetParam().ranks * GetParam().local_experts);
    EXPECT_EQ(buffer.local_experts(), GetParam().local_experts);
    const Tokens& mine = tokens_[static_cast<size_t>(world.rank())];
    const Dispatched got = run(buffer.dispatch(mine.x_TD, mine.topk_idx_TK, mine.weights_TK));
    expect_received(world.rank(), got);
    // Other rows go the same way.
    const Tensor twice = Tensor::empty(mine.x_TD.shape(), mine.x_TD.dtype());
    visit_float(twice.dtype(), [&](auto e) {
      std::ranges::transform(mine.x_TD.span<decltype(e)>(), twice.span<decltype(e)>().begin(),
                             [](auto v) { return 2 * v; });
    });
    const Rows again = run(buffer.dispatch(twice, got.handle));
    ASSERT_EQ(again.count(), got.x_RD.count());
    for (int64_t i = 0; i < again.count() * kWidth; ++i) {
      ASSERT_EQ(at(again.data, i / kWidth, i % kWidth), 2 * at(got.x_RD.data, i / kWidth, i % kWidth));
    }
  });
}

TEST_P(BufferTest, CombineSumsWhatTheRanksMadeOfAToken) {
  SCOPED_TRACE(seed_);
  const Case& c = GetParam();
  // What each rank's experts make of its rows, and of their weights.
  std::vector<Tensor> y;
  std::vector<Tensor> dweights;
  for (int r = 0; r < c.ranks; ++r) {
    const auto rows = static_cast<int64_t>(received(r).size());
    y.push_back(small_integers({rows, kWidth}, c.dtype, random_));
    dweights.push_back(small_integers({rows, c.top_k}, c.dtype, random_));
  }
  run_ranks([&](Group& world) {
    Buffer buffer(world, c.ranks * c.local_experts);
    const auto me = static_cast<size_t>(world.rank());
    const Tokens& mine = tokens_[me];
    const Dispatched in = run(buffer.dispatch(mine.x_TD, mine.topk_idx_TK, mine.weights_TK));
    const Combined out = run(buffer.combine(all_rows(y[me]), in.handle, dweights[me]));
    const Combined without = run(buffer.combine(all_rows(y[me]), in.handle, Tensor()));
    EXPECT_FALSE(without.weights_TK.defined());
    std::vector<double> x_TD(static_cast<size_t>(mine.x_TD.numel()));
    std::vector<double> weights_TK(static_cast<size_t>(mine.weights_TK.numel()));
    for (int r = 0; r < c.ranks; ++r) {
      int64_t row = 0;
      for (const Source& s : received(r)) {
        if (s.rank == world.rank()) {
          for (int64_t d = 0; d < kWidth; ++d) {
            x_TD[static_cast<size_t>(s.token * kWidth + d)] += at(y[static_cast<size_t>(r)], row, d);
          }
          for (int64_t k = 0; k < c.top_k; ++k) {
            weights_TK[static_cast<size_t>(s.token * c.top_k + k)] +=
                at(dweights[static_cast<size_t>(r)], row, k);
          }
        }
        ++row;
      }
    }
    for (size_t i = 0; i < x_TD.size(); ++i) {
      const auto n = static_cast<int64_t>(i);
      ASSERT_EQ(at(out.x_TD, n / kWidth, n % kWidth), x_TD[i]);
      ASSERT_EQ(at(without.x_TD, n / kWidth, n % kWidth), x_TD[i]);
    }
    for (size_t i = 0; i < weights_TK.size(); ++i) {
      const auto n = static_cast<int64_t>(i);
      ASSERT_EQ(at(out.weights_TK, n / c.top_k, n % c.top_k), weights_TK[i]);
    }
  });
}

TEST_P(BufferTest, MovesTheBytesOfTheHeader) {
  SCOPED_TRACE(seed_);
  const Case& c = GetParam();
  std::vector<std::vector<int64_t>> pairs;  // by receiver, then source
  for (int r = 0; r < c.ranks; ++r) {
    std::vector<int64_t>& from = pairs.emplace_back(static_cast<size_t>(c.ranks));
    for (const Source& s : received(r)) ++from[static_cast<size_t>(s.rank)];
  }
  run_ranks([&](Group& world) {
    Buffer buffer(world, c.ranks * c.local_experts);
    const auto me = static_cast<size_t>(world.rank());
    int64_t n = 0;
    int64_t m = 0;
    for (size_t r = 0; r < pairs.size(); ++r) {
      if (r == me) continue;
      n += pairs[r][me];
      m += pairs[me][r];
    }
    const auto w = static_cast<int64_t>(dtype_size(c.dtype));
    auto sent = [&, before = int64_t{0}]() mutable {
      const int64_t now = world.traffic().sent;
      return now - std::exchange(before, now);
    };
    const Tokens& mine = tokens_[me];
    const Dispatched in = run(buffer.dispatch(mine.x_TD, mine.topk_idx_TK, mine.weights_TK));
    const int64_t counts = c.way == Way::direct ? c.ranks : 1;
    const int64_t plan = 8 * (c.ranks - 1) * (counts + kStatementWords);
    EXPECT_EQ(sent(), n * (kWidth * w + c.top_k * (8 + w)) + plan);
    run(buffer.dispatch(mine.x_TD, in.handle));
    EXPECT_EQ(sent(), n * kWidth * w);
    run(buffer.combine(all_rows(in.x_RD.data), in.handle, Tensor()));
    EXPECT_EQ(sent(), m * kWidth * w);
    run(buffer.combine(all_rows(in.x_RD.data), in.handle, in.weights_RK));
    EXPECT_EQ(sent(), m * (kWidth + c.top_k) * w);
  });
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i)
    sum += at(a, i / a.dim(1), i % a.dim(1)) * at(b, i / b.dim(1), i % b.dim(1));
  return sum;
}

// Backward of each is the other: ⟨dispatch(x), y⟩ = ⟨x, combine(y)⟩, summed over ranks.
TEST_P(BufferTest, CombineIsTheTransposeOfDispatch) {
  SCOPED_TRACE(seed_);
  std::mutex mutex;
  double there = 0;
  double back = 0;
  run_ranks([&](Group& world) {
    Buffer buffer(world, GetParam().ranks * GetParam().local_experts);
    const Tokens& mine = tokens_[static_cast<size_t>(world.rank())];
    const Dispatched in = run(buffer.dispatch(mine.x_TD, mine.topk_idx_TK, mine.weights_TK));
    std::mt19937 random(seed_ + static_cast<unsigned>(world.rank()));
    const Tensor y_RD = small_integers({in.x_RD.count(), kWidth}, GetParam().dtype, random);
    const Combined out = run(buffer.combine(all_rows(y_RD), in.handle, Tensor()));
    const std::lock_guard lock(mutex);
    there += dot(in.x_RD.data.slice(0, in.x_RD.count()), y_RD);
    back += dot(mine.x_TD, out.x_TD);
  });
  EXPECT_EQ(there, back);
}

// Where pairs of ranks have slices of the same experts, each gets the rows of both, and combine sums what the
// two made of them; still each is the other's transpose.
TEST(Buffer, DispatchesToBothSlicesOfAnExpert) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const Case c = {.ranks = 4, .local_experts = 2, .top_k = 3, .choice = Choice::holes};
  const std::vector<Tokens> tokens = all_tokens(c, random);
  std::mutex mutex;
  double there[2] = {};  // of rows, and of weights
  double back[2] = {};
  run_thread_ranks({.ranks = 4}, [&](Group& world) {
    Mesh mesh(world, {.dp = 4, .ep = 2, .etp = 2});
    Buffer whole(mesh.group(Axis::ep), 4);
    Buffer buffer(mesh.group(Axis::ep), 4, {.etp = &mesh.group(Axis::etp)});
    Tokens mine = tokens[static_cast<size_t>(world.rank())];
    for (int64_t& e : mine.topk_idx_TK.span<int64_t>()) e = e < 0 ? -1 : e % 4;
    const Dispatched own = run(whole.dispatch(mine.x_TD, mine.topk_idx_TK, mine.weights_TK));
    const Dispatched in = run(buffer.dispatch(mine.x_TD, mine.topk_idx_TK, mine.weights_TK));
    const PooledVector<int64_t>& rows = in.handle.slice_rows;
    ASSERT_EQ(rows.size(), 2u);
    ASSERT_EQ(in.x_RD.count(), rows[0] + rows[1]);
    ASSERT_EQ(own.x_RD.count(), rows[static_cast<size_t>(mesh.coordinate(Axis::etp))]);
    const int64_t first = mesh.coordinate(Axis::etp) == 0 ? 0 : rows[0];
    for (int64_t i = 0; i < own.topk_idx_RK.count() * 3; ++i) {
      ASSERT_EQ(in.topk_idx_RK.data.data<int64_t>()[first * 3 + i], own.topk_idx_RK.data.data<int64_t>()[i]);
    }
    std::mt19937 mine_alone(seed + static_cast<unsigned>(world.rank()));
    const Tensor y_RD = small_integers({in.x_RD.count(), kWidth}, c.dtype, mine_alone);
    const Tensor w_RK = small_integers({in.x_RD.count(), 3}, c.dtype, mine_alone);
    for (int64_t i = 0; i < w_RK.numel(); ++i) {
      if (in.topk_idx_RK.data.data<int64_t>()[i] < 0) w_RK.data<double>()[i] = 0;
    }
    const Combined out = run(buffer.combine(all_rows(y_RD), in.handle, w_RK));
    const Rows again = run(buffer.dispatch(mine.x_TD, in.handle));
    const std::lock_guard lock(mutex);
    there[0] += dot(again.data, y_RD);
    back[0] += dot(mine.x_TD, out.x_TD);
    there[1] += dot(in.weights_RK, w_RK);
    back[1] += dot(mine.weights_TK, out.weights_TK);
  });
  EXPECT_EQ(there[0], back[0]);
  EXPECT_EQ(there[1], back[1]);
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (const Choice choice : {Choice::any, Choice::holes, Choice::one, Choice::even, Choice::nothing}) {
      out.push_back({ranks, 1, 1, choice});
      out.push_back({ranks, 3, 2, choice, DType::f32});
      out.push_back({ranks, 2, 5, choice});
      if (ranks > 1) out.push_back({ranks, 3, 4, choice, DType::f32, Way::messages});
    }
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Cases, BufferTest, ::testing::ValuesIn(cases()));

TEST(Buffer, RefusesExpertsThatTheRanksDoNotDivide) {
  EXPECT_THAT([] { run_thread_ranks({.ranks = 3}, [](Group& world) { Buffer(world, 4); }); },
              ThrowsMessage<Error>(HasSubstr("ep = 3 does not divide 4 experts")));
}

}  // namespace
}  // namespace phalanx::ep
