// One rank of a world that a launcher has started (launch_test.py):
//   ranks_program SEED [messages]
// Dispatch and combine on random cases, of many tokens and of few; `messages`: these ranks share no memory,
// without it they must.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "phalanx/comm/launch.h"
#include "tests/ep/low_latency_cases.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

int rank_main(unsigned seed, bool messages) {
  const std::optional<Launched> place = launched_by();
  if (!place) throw Error("start this with a launcher");
  run_ranks({.transport = place->transport, .ranks = place->ranks}, [&](Group& world) {
    if (world.shares_memory() == messages) throw Error("the ranks share {}memory", messages ? "" : "no ");
    check_cases(world, seed, 0, 40);
    for (unsigned i = 0; i < 10; ++i) check_low_latency(world, seed + i);
    if (testing::Test::HasFailure()) throw Error("what rank {} has printed", world.rank());
  });
  return 0;
}

}  // namespace
}  // namespace phalanx::ep

int main(int argc, char** argv) {
  testing::InitGoogleTest();
  try {
    return phalanx::ep::rank_main(argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 0,
                                  argc > 2 && std::string_view(argv[2]) == "messages");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
