// One process of a world that a launcher has started (launch_test.py):
//   ranks_program [threads N] SEED [messages]
//   ranks_program [threads N] SEED nodes OF_NODE
//   ranks_program [threads N] traffic OF_NODE ROUNDS [flat]
// Dispatch and combine on random cases, of many tokens and of few; `messages`: these ranks share no memory,
// without it they must. `nodes`: so many ranks of a node do, those of others do not, and rows go on two
// levels. `traffic`: rank 0 prints the bytes that ROUNDS of large ones send between nodes; `flat`: on one
// level. `threads`: a process has so many ranks.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "phalanx/comm/launch.h"
#include "tests/ep/low_latency_cases.h"
#include "tests/ep/random_cases.h"
#include "tests/ep/two_level_cases.h"

namespace phalanx::ep {
namespace {

int ranks_of_a_process = 1;  // set once, before there are ranks

void on_ranks(const RankBody& body) {
  const std::optional<Launched> place = launched_by();
  if (!place) throw Error("start this with a launcher");
  const int ranks = place->ranks * ranks_of_a_process;
  run_ranks({.transport = place->transport, .ranks = ranks}, [&](Group& world) {
    body(world);
    if (testing::Test::HasFailure()) throw Error("what rank {} has printed", world.rank());
  });
}

int rank_main(unsigned seed, bool messages) {
  on_ranks([&](Group& world) {
    if (world.shares_memory() == messages) throw Error("the ranks share {}memory", messages ? "" : "no ");
    check_cases(world, seed, 0, 40);
    for (unsigned i = 0; i < 10; ++i) check_low_latency(world, seed + i);
  });
  return 0;
}

int nodes_main(unsigned seed, int of_node) {
  on_ranks([&](Group& world) {
    if (world.shares_memory()) throw Error("all ranks share memory: these are no nodes");
    const BufferOptions named = {.way = Way::two_level, .ranks_of_node = of_node};
    const BufferOptions by_itself = {.phase = Phase::prefill, .ranks_of_node = of_node};
    for (unsigned i = 0; i < 15; ++i) {
      check_two_level(world, i % 2 == 0 ? named : by_itself, seed + i);
      check_link_bytes(world, i % 2 == 0 ? named : by_itself, seed + i);
    }
    check_by_size(world, of_node, seed);
    for (const Phase phase : {Phase::any, Phase::prefill, Phase::decode}) {
      check_phase(world, of_node, phase, seed);
    }
  });
  return 0;
}

int traffic_main(int of_node, int rounds, bool flat) {
  on_ranks([&](Group& world) {
    BufferOptions options;
    if (!flat) options = {.way = Way::two_level, .ranks_of_node = of_node};
    const int64_t bytes = send_much(world, options, of_node, rounds);
    if (world.rank() == 0) std::printf("%lld\n", static_cast<long long>(bytes));
  });
  return 0;
}

int run_program(std::span<char*> arguments) {
  const auto is = [&](size_t i, std::string_view word) {
    return arguments.size() > i && arguments[i] == word;
  };
  const auto number = [&](size_t i) { return arguments.size() > i ? std::atoi(arguments[i]) : 0; };
  if (is(1, "threads")) {
    ranks_of_a_process = number(2);
    arguments = arguments.subspan(2);
  }
  if (is(1, "traffic")) return traffic_main(number(2), number(3), is(4, "flat"));
  const auto seed = static_cast<unsigned>(number(1));
  return is(2, "nodes") ? nodes_main(seed, number(3)) : rank_main(seed, is(2, "messages"));
}

}  // namespace
}  // namespace phalanx::ep

int main(int argc, char** argv) {
  testing::InitGoogleTest();
  try {
    return phalanx::ep::run_program(std::span(argv, static_cast<size_t>(argc)));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
