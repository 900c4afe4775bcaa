// Experts that change places while tokens come: contents move bit for bit, results stay the same to the bit,
// and the fullest rank has less to do.
#include "phalanx/ep/rebalancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>

#include "phalanx/base/error.h"
#include "phalanx/comm/gather_numbers.h"
#include "phalanx/ep/buffer.h"
#include "phalanx/ep/move_slots.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// T tokens of a rank, D width, K top-k, P slots

TEST(LoadWindow, ForgetsTheOldest) {
  LoadWindow window(2, 3);
  for (const int64_t n : {1, 10, 100, 1000}) window.add(std::vector<int64_t>{n, 2 * n});
  EXPECT_THAT(window.loads_LE(), ElementsAre(1110, 2220));
  EXPECT_EQ(window.steps(), 3);
  EXPECT_THAT([&] { window.add(std::vector<int64_t>{1}); }, ThrowsMessage<Error>(HasSubstr("1 experts, 2")));
}

constexpr BalanceSizes kSizes = {.experts = 8, .replicas = 12, .gpus = 4};

ReplicaPlacement first_placement() { return placement_of(kSizes, {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3}); }

TEST(Rebalancer, ActsEverySoOftenAndOnlyForAGain) {
  Rebalancer even({.every = 2, .window = 2}, first_placement());
  // With twelve slots the most even loads are those of experts 0 … 3 twice as heavy.
  const std::vector<int64_t> as_placed = {20, 20, 20, 20, 10, 10, 10, 10};
  for (int i = 0; i < 6; ++i) EXPECT_FALSE(even.step(as_placed)) << i;
  Rebalancer skewed({.every = 3, .window = 3}, first_placement());
  const std::vector<int64_t> other = {1, 1, 1, 1, 10, 10, 10, 50};
  EXPECT_FALSE(skewed.step(other));
  EXPECT_FALSE(skewed.step(other));
  EXPECT_TRUE(skewed.step(other));
  const std::vector<float> loads(other.begin(), other.end());
  EXPECT_LT(max_over_mean(loads, skewed.placement())[0], max_over_mean(loads, first_placement())[0]);
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(skewed.step(other));  // as good as it gets
}

TEST(Rebalancer, MovesNoMoreThanAllowed) {
  Rebalancer few({.every = 1, .max_moves = 2}, first_placement());
  few.step(std::vector<int64_t>{1, 1, 1, 1, 10, 10, 10, 50});
  EXPECT_LE(moved(first_placement().phy2log, few.placement()), 2);
  EXPECT_THAT([] { Rebalancer({.every = 0}, first_placement()); },
              ThrowsMessage<Error>(HasSubstr("every 0 steps")));
}

ReplicaMap random_map(const ExpertMap& slots, int64_t experts, std::mt19937& random) {
  std::vector<int32_t> phy2log(static_cast<size_t>(slots.experts()));
  for (size_t p = 0; p < phy2log.size(); ++p)
    phy2log[p] = static_cast<int32_t>(p % static_cast<size_t>(experts));
  std::ranges::shuffle(phy2log, random);
  return ReplicaMap(phy2log, slots, experts);
}

class WaysTest : public testing::TestWithParam<bool> {
 protected:
  static WrapTransport way() { return GetParam() ? directly() : by_messages(); }
};

class MoveSlots : public WaysTest {};

TEST_P(MoveSlots, EverySlotHoldsItsExpert) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 20; ++i) {
    const int ranks = 1 + i % 4;
    std::vector<int64_t> counts(static_cast<size_t>(ranks));
    for (int64_t& n : counts) n = static_cast<int64_t>(random() % 5);
    counts.back() += 1;
    const ExpertMap slots{std::span<const int64_t>(counts)};
    const int64_t experts = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(slots.experts()));
    const ReplicaMap from = random_map(slots, experts, random);
    const ReplicaMap to = random_map(slots, experts, random);
    const auto contents = [&](const ReplicaMap& map, int rank, int64_t width) {
      const Tensor t = Tensor::empty({slots.count(rank), width}, DType::i64);
      for (int64_t j = 0; j < t.numel(); ++j) {
        const int64_t expert = map.phy2log()[static_cast<size_t>(slots.first(rank) + j / width)];
        t.data<int64_t>()[j] = 1000 * expert + j % width;
      }
      return t;
    };
    std::atomic<int64_t> sent{0};
    run_thread_ranks({.ranks = ranks}, way(), [&](Group& world) {
      PooledVector<Tensor> own = {contents(from, world.rank(), 3), contents(from, world.rank(), 7)};
      const int64_t before = world.traffic().sent;
      const auto got = run(move_slots(world, own, from, to));
      sent += world.traffic().sent - before;
      for (size_t n = 0; n < 2; ++n) {
        const Tensor want = contents(to, world.rank(), own[n].dim(1));
        ASSERT_EQ(std::memcmp(got[n].raw(), want.raw(), want.bytes()), 0);
      }
    });
    EXPECT_EQ(sent.load(), slots_moved(from, to) * 8 * (3 + 7));
  }
}

// A layer of experts, each of which multiplies a row by one of its own.
class Layer {
 public:
  static constexpr int64_t kTokens = 48;
  static constexpr int64_t kTopK = 3;
  static constexpr int64_t kWidth = 33;

  Layer(Group& world, const ReplicaPlacement& start)
      : world_(world),
        slots_(ExpertMap::even(kSizes.replicas, world.size())),
        map_(std::make_shared<ReplicaMap>(start.slots_of_layer(0), slots_, kSizes.experts)),
        buffer_(world, slots_),
        rows_(Tensor::empty({slots_.count(world.rank()), kWidth}, DType::f32)) {
    buffer_.set_replicas(map_);
    for (int64_t p = 0; p < rows_.rows(); ++p) {
      const int64_t expert = map_->phy2log()[static_cast<size_t>(slots_.first(world.rank()) + p)];
      std::ranges::copy(row_of(expert), rows_.slice(p, p + 1).data<float>());
    }
  }

  static std::vector<float> row_of(int64_t expert) {
    std::mt19937 random(static_cast<unsigned>(expert));
    std::vector<float> row(kWidth);
    for (float& v : row) v = std::normal_distribution<float>()(random);
    return row;
  }

  // Skewed choices whose favourites change with the step.
  static Tokens tokens(unsigned seed, int64_t step, int rank) {
    std::mt19937 random(seed + 1000 * static_cast<unsigned>(step) + static_cast<unsigned>(rank));
    Tokens t = {Tensor::empty({kTokens, kWidth}, DType::f32), Tensor::empty({kTokens, kTopK}, DType::i64),
                Tensor::empty({kTokens, kTopK}, DType::f32)};
    std::normal_distribution<float> normal;
    for (float& v : t.x_TD.span<float>()) v = normal(random);
    for (float& v : t.weights_TK.span<float>()) v = normal(random);
    for (int64_t& e : t.topk_idx_TK.span<int64_t>()) {
      e = random() % 3 != 0 ? (step / 6 + static_cast<int64_t>(random() % 2)) % kSizes.experts
                            : static_cast<int64_t>(random() % kSizes.experts);
    }
    return t;
  }

  Tensor forward(const Tokens& t) {
    DispatchOptions options = {.order = PairOrder::every_slot};
    const Dispatched in = run(buffer_.dispatch(t, options));
    rows_seen_ += in.x_RD.count();
    const Tensor y = Tensor::zeros(in.x_RD.data.shape(), DType::f32);
    for (int64_t i = 0; i < in.x_RD.count(); ++i) {
      for (int64_t k = 0; k < kTopK; ++k) {
        const int64_t slot = in.topk_idx_RK.data.data<int64_t>()[i * kTopK + k];
        if (slot < 0) continue;
        for (int64_t d = 0; d < kWidth; ++d) {
          y.data<float>()[i * kWidth + d] =
              in.weights_RK.data<float>()[i * kTopK + k] *
              (in.x_RD.data.data<float>()[i * kWidth + d] * rows_.data<float>()[slot * kWidth + d]);
        }
      }
    }
    return run(buffer_.combine(all_rows(y), in.handle, Tensor())).x_TD;
  }

  // The slow account: a token's experts in the order of its slots.
  static Tensor expected(const Tokens& t) {
    const Tensor out = Tensor::zeros(t.x_TD.shape(), DType::f32);
    for (int64_t i = 0; i < kTokens * kTopK; ++i) {
      const std::vector<float> row = row_of(t.topk_idx_TK.data<int64_t>()[i]);
      const float weight = t.weights_TK.data<float>()[i];
      for (int64_t d = 0; d < kWidth; ++d) {
        const int64_t at = i / kTopK * kWidth + d;
        out.data<float>()[at] += weight * (t.x_TD.data<float>()[at] * row[static_cast<size_t>(d)]);
      }
    }
    return out;
  }

  void place(const ReplicaPlacement& placement) {
    auto map = std::make_shared<ReplicaMap>(placement.slots_of_layer(0), slots_, kSizes.experts);
    PooledVector<Tensor> own = {rows_};
    rows_ = run(move_slots(world_, std::move(own), *map_, *map))[0];
    map_ = std::move(map);
    buffer_.set_replicas(map_);
  }

  // Of the fullest rank, how many rows its experts have worked on.
  double fullest() { return reduce_number(world_, static_cast<double>(rows_seen_), Reduce::max); }

 private:
  Group& world_;
  ExpertMap slots_;
  std::shared_ptr<const ReplicaMap> map_;
  Buffer buffer_;
  Tensor rows_;
  int64_t rows_seen_ = 0;
};

class Serving : public WaysTest {};

TEST_P(Serving, RebalancingChangesWhereButNotWhat) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  run_thread_ranks({.ranks = 4}, way(), [&](Group& world) {
    Layer still(world, first_placement());
    Layer moving(world, first_placement());
    Rebalancer rebalancer({.every = 2, .window = 4}, first_placement());
    int changes = 0;
    for (int64_t step = 0; step < 30; ++step) {
      const Tokens t = Layer::tokens(seed, step, world.rank());
      const Tensor a = still.forward(t);
      const Tensor b = moving.forward(t);
      const Tensor want = Layer::expected(t);
      ASSERT_EQ(std::memcmp(a.raw(), want.raw(), want.bytes()), 0) << "step " << step;
      ASSERT_EQ(std::memcmp(b.raw(), want.raw(), want.bytes()), 0) << "step " << step;
      const Tensor counts = world.all_reduce(count_choices(t.topk_idx_TK, kSizes.experts)).wait();
      if (!rebalancer.step(counts.span<int64_t>())) continue;
      moving.place(rebalancer.placement());
      ++changes;
    }
    EXPECT_GE(changes, 3);
    EXPECT_LT(moving.fullest(), 0.95 * still.fullest());
  });
}

INSTANTIATE_TEST_SUITE_P(Ways, Serving, testing::Bool());
INSTANTIATE_TEST_SUITE_P(Ways, MoveSlots, testing::Bool());

}  // namespace
}  // namespace phalanx::ep
