// The transport over NCCL: every collective, and every way in which a process can go wrong. The ranks are
// processes of nccl_program.cc, which share this machine's GPU, or have one each.
#include <gmock/gmock.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "tests/cuda_test.h"
#include "tests/paths.h"

namespace phalanx::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Ended {
  int status = -1;
  std::string text;
  double seconds = 0;
  std::string of_rank(int rank) const {
    const std::string begin = format("rank {}: ", rank);
    const size_t at = text.find("\n" + begin);
    if (at == std::string::npos) return "";
    const size_t from = at + 1 + begin.size();
    return text.substr(from, text.find('\n', from) - from);
  }
};

class NcclRanks : public CudaTest {
 protected:
  static Ended run(const std::string& arguments) {
    const std::string command = testing::kBinary;
    const std::string program = command.substr(0, command.rfind('/')) + "/test_comm_nccl ";
    Ended ended{.text = "\n"};
    FILE* out = popen((program + arguments + " 2>&1").c_str(), "r");
    if (!out) return ended;
    std::array<char, 4096> buffer{};
    for (size_t n = 0; (n = fread(buffer.data(), 1, buffer.size(), out)) > 0;) {
      ended.text.append(buffer.data(), n);
    }
    const int status = pclose(out);
    ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    const size_t lasted = ended.text.find("\nlasted ");
    if (lasted != std::string::npos) ended.seconds = std::stod(ended.text.substr(lasted + 8));
    return ended;
  }
};

class NcclWorlds : public NcclRanks, public ::testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, NcclWorlds, ::testing::Values(2, 3, 4));

TEST_P(NcclWorlds, CollectivesEqualTheCpus) {
  const Ended e = run(format("collectives {}", GetParam()));
  EXPECT_EQ(e.status, 0) << e.text;
}

TEST_P(NcclWorlds, StreamsAreOrdered) {
  const Ended e = run(format("order {}", GetParam()));
  EXPECT_EQ(e.status, 0) << e.text;
}

TEST_F(NcclRanks, GroupsOfAMeshAndManyInFlight) {
  const Ended e = run("groups 4");
  EXPECT_EQ(e.status, 0) << e.text;
}

// Rank 0, which made the communicator's name, is no exception.
TEST_F(NcclRanks, AKilledRankIsNamedByEverySurvivor) {
  for (const int culprit : {0, 2}) {
    const Ended e = run(format("killed 3 {}", culprit));
    EXPECT_EQ(e.status, 1) << e.text;
    EXPECT_LT(e.seconds, 40) << e.text;
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == culprit) continue;
      EXPECT_THAT(e.of_rank(rank), AllOf(HasSubstr(format("rank {} (pid ", culprit)), HasSubstr("is gone"),
                                         HasSubstr("all_reduce(f64[5000], sum)")))
          << e.text;
    }
  }
}

TEST_F(NcclRanks, AStoppedRankIsNamedByEverySurvivor) {
  const Ended e = run("stopped 2 1");
  EXPECT_THAT(e.of_rank(0), AllOf(HasSubstr("rank 1 (pid "), HasSubstr("no sign of life"))) << e.text;
}

TEST_F(NcclRanks, ARankThatThrowsIsNamedByAll) {
  const Ended e = run("throws 3 1");
  for (const int survivor : {0, 2})
    EXPECT_THAT(e.of_rank(survivor), HasSubstr("rank 1: disk full")) << e.text;
}

TEST_F(NcclRanks, ASilentRankIsNamedAfterTheDeadline) {
  const Ended e = run("silent 2 1");
  EXPECT_THAT(e.of_rank(0), AllOf(HasSubstr("in all_reduce(f64[5000], sum) #20 of group world"),
                                  HasSubstr("rank 1 never called it")))
      << e.text;
}

// A host that is stuck in a full queue looks at nothing.
TEST_F(NcclRanks, AHostThatHasFilledItsQueueGetsOn) {
  const Ended e = run("flooded 2 1");
  EXPECT_THAT(e.of_rank(0), AllOf(HasSubstr("rank 1 (pid "), HasSubstr("is gone"))) << e.text;
  EXPECT_LT(e.seconds, 40) << e.text;
}

// Two ranks on one GPU whom nobody told NCCL to be two hosts: its error, not a hang.
TEST_F(NcclRanks, WhatNcclRefusesIsAnError) {
  if (cuda_devices() > 1) GTEST_SKIP() << "each rank has a GPU";
  const Ended e = run("duplicate 2");
  EXPECT_EQ(e.status, 1) << e.text;
  EXPECT_THAT(e.text, HasSubstr("NCCL: ")) << e.text;
}

}  // namespace
}  // namespace phalanx::test
