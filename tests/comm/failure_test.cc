// A rank that throws, ends, never comes, drops its work or calls something else: every survivor stops and
// says who, in which operation of which group.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <stdexcept>
#include <thread>

#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::Each;
using testing::HasSubstr;

Tensor zeros(int64_t n, DType dtype = DType::f32) { return Tensor::zeros({n}, dtype); }

TEST(Failure, ARankThatThrowsWakesEveryWaiter) {
  const Reports r = reports_of({.ranks = 4}, [](Group& world) {
    world.barrier().wait();
    if (world.rank() == 2) throw std::runtime_error("disk full");
    world.all_reduce(zeros(100'000)).wait();
  });
  EXPECT_EQ(r.of_world, "disk full");
  EXPECT_EQ(r.of_rank[2], "disk full");
  for (const size_t survivor : {0, 1, 3}) {
    EXPECT_THAT(r.of_rank[survivor], AllOf(HasSubstr("rank 2: disk full"),
                                           HasSubstr("all_reduce(f32[100000], sum) #1 of group world")));
  }
}

TEST(Failure, TheFirstErrorWinsAndKeepsItsType) {
  EXPECT_THROW(run_thread_ranks({.ranks = 3},
                                [](Group& world) {
                                  if (world.rank() == 1) throw std::out_of_range("mine");
                                  world.barrier().wait();
                                }),
               std::out_of_range);
}

TEST(Failure, WhatIsNoExceptionAlsoEndsTheWorld) {
  const Reports r = reports_of({.ranks = 2}, [](Group& world) {
    if (world.rank() == 1) throw 7;  // NOLINT(hicpp-exception-baseclass)
    world.barrier().wait();
  });
  EXPECT_THAT(r.of_rank[0], HasSubstr("rank 1: an exception of unknown type"));
}

TEST(Waiting, IsCountedWhereOthersAreLate) {
  constexpr auto kLate = std::chrono::milliseconds(60);
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    world.barrier().wait();
    const double before = world.waited();
    if (world.rank() == 1) std::this_thread::sleep_for(kLate);
    world.barrier().wait();
    const double waited = world.waited() - before;
    if (world.rank() == 0) {
      EXPECT_GE(waited, 0.05);
    } else {
      EXPECT_LT(waited, 0.05);
    }
  });
}

TEST(Failure, AGroupIsPoisonedForGood) {
  const Reports r = reports_of({.ranks = 2}, [](Group& world) {
    const std::array<int, 1> alone = {world.rank()};
    Group own = world.subgroup("own", alone);
    if (world.rank() == 1) throw std::runtime_error("gone");
    try {
      world.barrier().wait();
    } catch (const CommError&) {
    }
    own.all_reduce(zeros(3)).wait();
  });
  EXPECT_THAT(r.of_rank[0], HasSubstr("rank 1: gone"));
}

TEST(Failure, ARankThatEndsEarlyIsNamedAtOnce) {
  const Reports r = reports_of({.ranks = 3}, [](Group& world) {  // no short deadline
    world.all_gather(zeros(5)).wait();
    if (world.rank() == 1) return;
    world.reduce_scatter(zeros(6)).wait();
  });
  for (const size_t survivor : {0, 2}) {
    EXPECT_THAT(
        r.of_rank[survivor],
        AllOf(HasSubstr("rank 1 has ended without calling reduce_scatter(f32[6], sum) #1 of group world"),
              HasSubstr("its last operation: finished all_gather(f32[5]) #0 of group world")));
  }
}

TEST(Failure, EndingAfterTheLastCallIsNoError) {
  for (int i = 0; i < 50; ++i) {
    run_thread_ranks({.ranks = 3}, [](Group& world) {
      Work a = world.broadcast(zeros(3), 0);
      Work b = world.all_reduce(zeros(1000));
      Work c = world.barrier();
      if (world.rank() == 1) {
        c.wait();
        b.wait();
      }
      a.wait();
      b.wait();
      c.wait();
    });
  }
}

TEST(Failure, WhoeverNeverComesIsNamedAfterTheDeadline) {
  std::latch survivors_done(2);
  const Reports r = reports_of({.ranks = 4, .deadlines = kSoon}, [&](Group& world) {
    const std::array<int, 3> members = {0, 1, 3};
    if (world.rank() == 2) return;
    Group dp = world.subgroup("dp", members);
    dp.barrier().wait();
    if (world.rank() == 3) {
      survivors_done.wait();
      return;
    }
    struct Done {
      std::latch& latch;
      ~Done() { latch.count_down(); }
    } const done{survivors_done};
    dp.all_reduce(zeros(7, DType::i64), Reduce::max).wait();
  });
  for (const size_t survivor : {0, 1}) {
    EXPECT_THAT(r.of_rank[survivor], AllOf(HasSubstr("s in all_reduce(i64[7], max) #1 of group dp"),
                                           HasSubstr("rank 3 never called it"),
                                           HasSubstr("rank 3: finished barrier #0 of group dp")));
  }
  EXPECT_EQ(r.of_rank[3], "");
}

TEST(Failure, AWorkThatIsDroppedGivesTheWorldUp) {
  std::latch dropped(1);
  const Reports r = reports_of({.ranks = 3}, [&](Group& world) {
    if (world.rank() == 0) {
      { const Work work = world.all_reduce(zeros(9'000)); }
      dropped.count_down();
      world.barrier().wait();
    }
    dropped.wait();
    world.all_reduce(zeros(9'000)).wait();
  });
  for (const std::string& report : r.of_rank) {
    EXPECT_THAT(report, HasSubstr("rank 0 gave up all_reduce(f32[9000], sum) #0 of group world"));
  }
}

TEST(Failure, TheReasonIsTheExceptionAndNotTheWorkThatItDropped) {
  const Reports r = reports_of({.ranks = 2}, [](Group& world) {
    const Work dropped = world.all_reduce(zeros(9'000));
    if (world.rank() == 1) throw std::runtime_error("the reason");
    world.barrier().wait();
  });
  EXPECT_THAT(r.of_rank[0], HasSubstr("rank 1: the reason"));
}

TEST(Failure, AnExceptionThatIsSwallowedDoesNotHideTheWorkThatItDropped) {
  std::latch dropped(1);
  const Reports r = reports_of({.ranks = 2}, [&](Group& world) {
    if (world.rank() == 0) dropped.wait();
    try {
      const Work work = world.all_reduce(zeros(9'000));
      if (world.rank() == 1) throw std::runtime_error("swallowed");
    } catch (const std::runtime_error&) {
      dropped.count_down();
    }
  });
  EXPECT_THAT(r.of_world, HasSubstr("gave up all_reduce(f32[9000], sum) #0 of group world"));
}

// Two ranks fail at once: whoever comes second sees the first's report whole or not at all.
TEST(Failure, ABoardShowsNoReportThatIsStillBeingWritten) {
  const std::array<std::string, 2> texts = {std::string(3000, 'a'), std::string(3000, 'b')};
  for (int i = 0; i < 300; ++i) {
    FailureBoard board;
    EXPECT_FALSE(board.first());
    std::latch both(2);
    std::array<bool, 2> first{};
    std::array<std::optional<Failure>, 2> seen;
    const auto rank = [&](size_t r) {
      both.arrive_and_wait();
      first[r] = board.fail(static_cast<int>(r), texts[r]);
      seen[r] = board.first();
    };
    std::thread other(rank, 1);
    rank(0);
    other.join();
    ASSERT_NE(first[0], first[1]);
    const size_t winner = first[0] ? 0 : 1;
    ASSERT_TRUE(seen[winner]);
    EXPECT_EQ(seen[winner]->rank, static_cast<int>(winner));
    EXPECT_EQ(seen[winner]->message, texts[winner]);
    if (seen[1 - winner]) {
      EXPECT_EQ(seen[1 - winner]->message, texts[winner]);
    }
  }
}

struct Mismatch {
  const char* name;
  void (*first)(Group&);   // on rank 0
  void (*others)(Group&);  // on the other ranks
  std::vector<const char*> texts;
};

void pair_of_messages(Group& world, int64_t sent, int64_t expected) {
  const int peer = 1 - world.rank();
  PooledVector<P2P> batch;
  batch.push_back(send_to(peer, zeros(sent)));
  batch.push_back(recv_from(peer, zeros(expected)));
  world.exchange(std::move(batch)).wait();
}

const std::vector<Mismatch>& mismatches() {
  static const std::vector<Mismatch> all = {
      {"Kind",
       [](Group& g) { g.all_reduce(zeros(8)).wait(); },
       [](Group& g) { g.all_gather(zeros(8)).wait(); },
       {"all_reduce(f32[8], sum)", "all_gather(f32[8])"}},
      {"Size",
       [](Group& g) { g.all_reduce(zeros(5000)).wait(); },
       [](Group& g) { g.all_reduce(zeros(5001)).wait(); },
       {"f32[5000]", "f32[5001]"}},
      {"Dtype",
       [](Group& g) { g.all_reduce(zeros(8)).wait(); },
       [](Group& g) { g.all_reduce(zeros(8, DType::i32)).wait(); },
       {"f32[8]", "i32[8]"}},
      {"Reduction",
       [](Group& g) { g.all_reduce(zeros(8)).wait(); },
       [](Group& g) { g.all_reduce(zeros(8), Reduce::max).wait(); },
       {"sum", "max"}},
      {"Root",
       [](Group& g) { g.broadcast(zeros(8), 0).wait(); },
       [](Group& g) { g.broadcast(zeros(8), 1).wait(); },
       {"root 0", "root 1"}},
      {"Order",
       [](Group& g) {
         Work a = g.all_reduce(zeros(8));
         Work b = g.barrier();
         a.wait();
         b.wait();
       },
       [](Group& g) {
         Work b = g.barrier();
         Work a = g.all_reduce(zeros(8));
         a.wait();
         b.wait();
       },
       {"all_reduce(f32[8], sum)", "barrier"}},
      {"CollectiveAgainstMessages",
       [](Group& g) { pair_of_messages(g, 3, 3); },
       [](Group& g) { g.all_reduce(zeros(8)).wait(); },
       {"exchange", "all_reduce(f32[8], sum)"}},
      {"MessageBytes",
       [](Group& g) { pair_of_messages(g, 3, 4); },
       [](Group& g) { pair_of_messages(g, 5, 3); },
       {"bytes", "exchange"}},
      {"Rows",
       [](Group& g) {
         const std::array<int64_t, 2> send = {1, 3};
         const std::array<int64_t, 2> recv = {1, 2};
         g.all_to_all(zeros(4), send, recv).wait();
       },
       [](Group& g) {
         const std::array<int64_t, 2> send = {2, 1};
         const std::array<int64_t, 2> recv = {2, 1};
         g.all_to_all(zeros(3), send, recv).wait();
       },
       {"all_to_all", "rank 0", "rank 1"}},
  };
  return all;
}

enum class Over : uint8_t { threads, exchange, processes };

std::string name_of(Over over) {
  if (over == Over::threads) return "OnThreads";
  return over == Over::exchange ? "OverExchange" : "BetweenProcesses";
}

class MismatchTest : public testing::TestWithParam<std::tuple<size_t, Over>> {
 protected:
  static Reports reports(Over over, const RankBody& body) {
    if (over == Over::processes) return reports_of_processes({.ranks = 2}, body);
    return over == Over::exchange ? reports_of({.ranks = 2}, FakePlan{}, body)
                                  : reports_of({.ranks = 2}, body);
  }
};

// Without a short deadline: a call that differs is noticed at once.
TEST_P(MismatchTest, NamesBothCallsAndRanks) {
  const Mismatch& m = mismatches()[std::get<0>(GetParam())];
  const auto body = [&](Group& world) { (world.rank() == 0 ? m.first : m.others)(world); };
  const Reports r = reports(std::get<1>(GetParam()), body);
  EXPECT_THAT(r.of_world, AllOf(HasSubstr("calls differ"), HasSubstr("rank 0"), HasSubstr("rank 1")));
  for (const std::string& report : r.of_rank) {
    // A process that has sent its part and got the others' has ended well before that is known.
    if (report.empty() && std::get<1>(GetParam()) == Over::processes) continue;
    for (const char* text : m.texts) EXPECT_THAT(report, HasSubstr(text));
  }
}

INSTANTIATE_TEST_SUITE_P(Calls, MismatchTest,
                         testing::Combine(testing::Range(size_t{0}, mismatches().size()),
                                          testing::Values(Over::threads, Over::exchange, Over::processes)),
                         [](const auto& test) {
                           return mismatches()[std::get<0>(test.param)].name +
                                  name_of(std::get<1>(test.param));
                         });

TEST(Failure, SharedTensorsOfOtherDtypes) {
  const Reports r = reports_of({.ranks = 2}, [](Group& world) {
    std::array<Tensor, 2> peers;
    world.share(zeros(8, world.rank() == 0 ? DType::f32 : DType::bf16), peers).wait();
  });
  EXPECT_THAT(r.of_world, AllOf(HasSubstr("share(f32)"), HasSubstr("share(bf16)")));
}

// What a rank is writing to stays, though its owner has unwound and ended.
TEST(Failure, ASharedTensorOutlivesARankThatFails) {
  const Reports r = reports_of({.ranks = 2}, [](Group& world) {
    std::array<Tensor, 2> peers;
    {
      const Tensor mine = zeros(1 << 20);
      world.share(mine, peers).wait();
    }
    if (world.rank() == 0) {
      peers = {};
      throw Error("rank 0 has had enough");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::ranges::fill(peers[0].span<float>(), 1.0f);
    world.barrier().wait();
  });
  EXPECT_THAT(r.of_rank[1], HasSubstr("rank 0 has had enough"));
}

// The operation that fails is another one than the one that is waited for.
TEST(Failure, AnOperationThatThrowsWhileAnotherIsAwaited) {
  const Reports r = reports_of({.ranks = 2}, [](Group& world) {
    const std::array<int, 2> both = {0, 1};
    Group other = world.subgroup("other", both);
    Work awaited = world.all_reduce(zeros(64));
    Work bad = other.all_reduce(zeros(world.rank() == 0 ? 7 : 8));
    awaited.wait();
    bad.wait();
  });
  EXPECT_THAT(r.of_rank, Each(AllOf(HasSubstr("calls differ"), HasSubstr("of group other"))));
}

// Two groups of the same ranks, waited for in opposite orders: no rank can go on, and the deadline says so.
TEST(Failure, AStandstillEndsAtTheDeadline) {
  const Reports r = reports_of({.ranks = 2, .deadlines = kSoon}, [](Group& world) {
    const std::array<int, 2> both = {0, 1};
    Group a = world.subgroup("a", both);
    Group b = world.subgroup("b", both);
    (world.rank() == 0 ? a : b).barrier().wait();
    (world.rank() == 0 ? b : a).barrier().wait();
  });
  EXPECT_THAT(r.of_rank, Each(AllOf(HasSubstr("waited"), HasSubstr("never called it"))));
}

TEST(Failure, FaultsOfTheFakeTransport) {
  const auto body = [](Group& world) {
    for (int i = 0; i < 5; ++i) world.all_reduce(zeros(3'000)).wait();
  };
  FakePlan plan{.fault = FakePlan::Fault::error, .fault_rank = 1, .fault_exchange = 3};
  const Reports error = reports_of({.ranks = 3}, plan, body);
  EXPECT_THAT(error.of_rank, Each(HasSubstr("exchange 3 fails on purpose")));
  for (const auto fault : {FakePlan::Fault::loss, FakePlan::Fault::silence}) {
    plan.fault = fault;
    const Reports silent = reports_of({.ranks = 3, .deadlines = kSoon}, plan, body);
    EXPECT_THAT(silent.of_rank, Each(AllOf(HasSubstr("waited"), HasSubstr("nothing came from"),
                                           HasSubstr("of group world"))));
  }
}

TEST(Failure, PollingAWorkOfAFailedWorldThrows) {
  const Reports r = reports_of({.ranks = 2}, [](Group& world) {
    if (world.rank() == 1) throw std::runtime_error("gone");
    Work work = world.barrier();
    while (!work.done()) std::this_thread::yield();
  });
  EXPECT_THAT(r.of_rank[0], HasSubstr("rank 1: gone"));
}

}  // namespace
}  // namespace phalanx
