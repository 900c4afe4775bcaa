#include "phalanx/train/agree.h"

#include <gtest/gtest.h>

#include <mutex>
#include <random>

#include "phalanx/base/error.h"
#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

// What each rank of `ranks` threw, "" for one that returned.
std::vector<std::string> thrown_by(int ranks, const std::function<void(Group&)>& body) {
  std::vector<std::string> thrown(static_cast<size_t>(ranks));
  run_thread_ranks({.ranks = ranks}, [&](Group& world) {
    std::string& mine = thrown[static_cast<size_t>(world.rank())];
    try {
      body(world);
    } catch (const BrokenPromise&) {
      mine = "broken promise";
    } catch (const Error& e) {
      mine = e.what();
    }
    all_or_none(world, [] {});  // the group goes on
  });
  return thrown;
}

TEST(AllOrNone, EveryRankSaysWhatTheFirstThatFailedSaid) {
  for (const int ranks : {1, 2, 5}) {
    for (int failing = 0; failing < ranks; ++failing) {
      const std::vector<std::string> thrown = thrown_by(ranks, [&](Group& world) {
        all_or_none(world, [&] {
          if (world.rank() >= failing)
            throw Error("no room on disk {} {}", world.rank(), std::string(3000, 'x'));
        });
      });
      std::string expected = format("no room on disk {} {}", failing, std::string(3000, 'x'));
      if (ranks > 1) expected = format("rank {}: ", failing) + expected;
      EXPECT_EQ(thrown, std::vector<std::string>(static_cast<size_t>(ranks), expected));
    }
    EXPECT_EQ(thrown_by(ranks, [](Group& world) { all_or_none(world, [] {}); }),
              std::vector<std::string>(static_cast<size_t>(ranks)));
  }
}

TEST(AllOrNone, ABrokenPromiseStaysOneWhereItWasBroken) {
  const std::vector<std::string> thrown = thrown_by(
      3, [](Group& world) { all_or_none(world, [&] { PHX_CHECK(world.rank() != 1, "ones and twos"); }); });
  EXPECT_EQ(thrown[1], "broken promise");
  EXPECT_NE(thrown[0].find("rank 1: "), std::string::npos);
  EXPECT_EQ(thrown[0], thrown[2]);
}

TEST(Agree, TextsOfAnyLengthReachTheirRanks) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const int ranks : {1, 3, 4}) {
    std::vector<std::string> texts;
    std::mt19937 random(seed);
    for (int r = 0; r < ranks; ++r)
      texts.emplace_back(r == 1 ? 0 : random() % 100'000, static_cast<char>('a' + r));
    run_thread_ranks({.ranks = ranks}, [&](Group& world) {
      const std::string& mine = texts[static_cast<size_t>(world.rank())];
      const std::vector<std::string> all = gather_texts(world, mine);
      EXPECT_EQ(all, world.rank() == 0 ? texts : std::vector<std::string>());
      for (int root = 0; root < ranks; ++root) {
        EXPECT_EQ(broadcast_text(world, mine, root), texts[static_cast<size_t>(root)]);
      }
    });
  }
}

}  // namespace
}  // namespace phalanx
