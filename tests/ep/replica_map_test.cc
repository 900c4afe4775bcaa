// Which replica a token goes to: every token to a slot of its expert, as many as was decided, and no rank
// fuller than it must be.
#include "phalanx/ep/replica_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "phalanx/base/error.h"

namespace phalanx::ep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// Slots uneven over ranks; every expert has a replica, the rest are any.
ReplicaMap random_map(std::mt19937& random) {
  const auto ranks = 1 + random() % 8;
  std::vector<int64_t> slots(ranks);
  for (int64_t& n : slots) n = static_cast<int64_t>(random() % 6);
  slots[0] += 1;
  const int64_t all = std::accumulate(slots.begin(), slots.end(), int64_t{0});
  const int64_t experts = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(all));
  std::vector<int32_t> phy2log(static_cast<size_t>(all));
  for (size_t p = 0; p < phy2log.size(); ++p) {
    phy2log[p] = static_cast<int32_t>(static_cast<int64_t>(p) < experts
                                          ? static_cast<int64_t>(p)
                                          : static_cast<int64_t>(random() % static_cast<uint64_t>(experts)));
  }
  std::ranges::shuffle(phy2log, random);
  return ReplicaMap(phy2log, ExpertMap(slots), experts);
}

Tensor random_choices(const ReplicaMap& map, std::mt19937& random) {
  const Tensor idx = Tensor::empty({static_cast<int64_t>(random() % 40), 3}, DType::i64);
  const auto experts = static_cast<uint64_t>(map.experts());
  const uint64_t favoured = 1 + random() % experts;
  for (int64_t& e : idx.span<int64_t>()) {
    e = random() % 5 == 0 ? -1 : static_cast<int64_t>(random() % (random() % 2 ? favoured : experts));
  }
  return idx;
}

TEST(ReplicaMap, ListsTheReplicas) {
  const std::vector<int32_t> phy2log = {2, 0, 1, 2, 2};
  const ReplicaMap map(phy2log, ExpertMap(std::vector<int64_t>{3, 2}), 3);
  EXPECT_THAT(map.replicas(0), ElementsAre(1));
  EXPECT_THAT(map.replicas(2), ElementsAre(0, 3, 4));
}

TEST(ReplicaMap, RefusesWhatIsNoPlacement) {
  const auto made = [](std::vector<int32_t> phy2log, int64_t experts) {
    return [=] { ReplicaMap(phy2log, ExpertMap::even(4, 2), experts); };
  };
  EXPECT_THAT(made({0, 1, 2}, 3), ThrowsMessage<Error>(HasSubstr("3 slots are placed, the ranks have 4")));
  EXPECT_THAT(made({0, 1, 2, 3}, 3), ThrowsMessage<Error>(HasSubstr("holds expert 3, there are 3")));
  EXPECT_THAT(made({0, 1, -1, 2}, 3), ThrowsMessage<Error>(HasSubstr("holds expert -1")));
  EXPECT_THAT(made({0, 1, 1, 0}, 3), ThrowsMessage<Error>(HasSubstr("expert 2 has no replica")));
}

TEST(ShareTokens, LevelsTheRanks) {
  // Rank 0 has experts 0 and 1, rank 1 expert 1 alone, rank 2 experts 1 and 2.
  const ReplicaMap map(std::vector<int32_t>{0, 1, 1, 1, 2}, ExpertMap(std::vector<int64_t>{2, 1, 2}), 3);
  EXPECT_THAT(share_tokens(map, std::vector<int64_t>{10, 20, 4}), ElementsAre(10, 1, 12, 7, 4));
  EXPECT_THAT(share_tokens(map, std::vector<int64_t>{30, 6, 4}), ElementsAre(30, 0, 5, 1, 4));
}

TEST(ShareTokens, GivesAllAndLeavesNothingToImprove) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  int improvable = 0;
  for (int i = 0; i < 2000; ++i) {
    const ReplicaMap map = random_map(random);
    std::vector<int64_t> tokens(static_cast<size_t>(map.experts()));
    for (int64_t& n : tokens) n = static_cast<int64_t>(random() % (random() % 4 == 0 ? 1000 : 50));
    const auto of_slot = share_tokens(map, tokens);
    std::vector<int64_t> load(static_cast<size_t>(map.slots().ranks()), 0);
    for (size_t p = 0; p < of_slot.size(); ++p) {
      ASSERT_GE(of_slot[p], 0);
      load[static_cast<size_t>(map.slots().owner(static_cast<int64_t>(p)))] += of_slot[p];
    }
    bool could_move = false;
    for (int64_t e = 0; e < map.experts(); ++e) {
      int64_t given = 0;
      for (const int32_t p : map.replicas(e)) {
        const int64_t here = load[static_cast<size_t>(map.slots().owner(p))];
        given += of_slot[static_cast<size_t>(p)];
        for (const int32_t q : map.replicas(e)) {
          const int64_t there = load[static_cast<size_t>(map.slots().owner(q))];
          could_move = could_move || (of_slot[static_cast<size_t>(p)] > 0 && here > there + 1);
        }
      }
      ASSERT_EQ(given, tokens[static_cast<size_t>(e)]);
    }
    improvable += could_move;
  }
  EXPECT_LE(improvable, 100);  // rounds are limited
}

TEST(ChooseReplicas, AllRanksTogetherFillTheShares) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 500; ++i) {
    const ReplicaMap map = random_map(random);
    const int ranks = map.slots().ranks();
    std::vector<Tensor> idx;
    const Tensor tokens_RE = Tensor::empty({ranks, map.experts()}, DType::i64);
    std::vector<int64_t> tokens(static_cast<size_t>(map.experts()), 0);
    for (int r = 0; r < ranks; ++r) {
      idx.push_back(random_choices(map, random));
      const Tensor counts = count_choices(idx.back(), map.experts());
      std::ranges::copy(counts.span<int64_t>(), tokens_RE.slice(r, r + 1).data<int64_t>());
      std::ranges::transform(counts.span<int64_t>(), tokens, tokens.begin(), std::plus());
    }
    const auto shares = share_tokens(map, tokens);
    std::vector<int64_t> got(shares.size(), 0);
    std::vector<int64_t> kept(static_cast<size_t>(ranks * map.experts()), 0);
    for (int r = 0; r < ranks; ++r) {
      const Tensor slots = choose_replicas(idx[static_cast<size_t>(r)], map, tokens_RE, r);
      for (int64_t j = 0; j < slots.numel(); ++j) {
        const int64_t e = idx[static_cast<size_t>(r)].data<int64_t>()[j];
        const int64_t p = slots.data<int64_t>()[j];
        ASSERT_EQ(p < 0, e < 0);
        if (p < 0) continue;
        ASSERT_EQ(map.phy2log()[static_cast<size_t>(p)], e);
        ++got[static_cast<size_t>(p)];
        kept[static_cast<size_t>(r * map.experts() + e)] += map.slots().owner(p) == r;
      }
    }
    ASSERT_TRUE(std::ranges::equal(got, shares));
    for (int r = 0; r < ranks; ++r) {  // what a rank's own replicas have room for does not travel
      for (int64_t e = 0; e < map.experts(); ++e) {
        int64_t room = 0;
        for (const int32_t p : map.replicas(e)) {
          if (map.slots().owner(p) == r) room += shares[static_cast<size_t>(p)];
        }
        const int64_t at = r * map.experts() + e;
        ASSERT_EQ(kept[static_cast<size_t>(at)], std::min(room, tokens_RE.data<int64_t>()[at]));
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::ep
