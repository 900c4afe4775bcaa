// Dispatch and combine between processes of one host: into each other's memory and by messages they give the
// same bits; a steady state takes nothing; a rank that dies is named. (Also: buffer_test.cc, random_cases.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <random>

#include "phalanx/comm/transport/process.h"
#include "phalanx/ep/buffer.h"
#include "phalanx/ep/row_places.h"
#include "phalanx/ep/times.h"

namespace phalanx::ep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// T tokens of a rank, D width, K top-k

struct Sizes {
  int64_t tokens = 0;
  int64_t width = 0;
  int64_t top_k = 0;
  int64_t experts_a_rank = 1;
};

Tensor random_floats(const Shape& shape, std::mt19937& random) {
  const Tensor t = Tensor::empty(shape, DType::bf16);
  std::normal_distribution<float> normal;
  for (bf16& v : t.span<bf16>()) v = bf16::from(normal(random));
  return t;
}

// Throws on the rank that sees it: expectations of a rank's process do not reach the test's.
void require_equal(const char* what, const PooledVector<Tensor>& a, const PooledVector<Tensor>& b) {
  if (a.size() != b.size()) throw Error("{}: {} and {} tensors", what, a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].shape() != b[i].shape()) throw Error("{}: shapes {} and {}", what, a[i].shape(), b[i].shape());
    if (std::memcmp(a[i].raw(), b[i].raw(), a[i].bytes()) != 0) throw Error("{}: other bits", what);
  }
}

void compare_ways(Group& world, const Sizes& s, std::mt19937& random) {
  const auto experts = static_cast<int>(s.experts_a_rank * world.size());
  const Tensor idx_TK = random_choices(s.tokens, s.top_k, experts, random());
  const Layout layout = layout_of(idx_TK, ExpertMap::even(experts, world.size()));
  const std::unique_ptr<Transfer> direct = direct_transfer(world);
  const std::unique_ptr<Transfer> messages = message_transfer(world);
  const Route into_memory = run(direct->plan(layout, Statement())).route;
  const Route by_messages = run(messages->plan(layout, Statement())).route;
  if (into_memory.recv_rows != by_messages.recv_rows) throw Error("the plans differ");
  const PooledVector<Tensor> rows = {random_floats({s.tokens, s.width}, random), idx_TK,
                                     random_floats({s.tokens, s.top_k}, random)};
  const PooledVector<Tensor> room = direct->room(rows, into_memory.received());
  const PooledVector<Tensor> other_room = messages->room(rows, by_messages.received());
  run(direct->spread(rows, into_memory, room));
  run(messages->spread(rows, by_messages, other_room));
  require_equal("spread", room, other_room);
  const PooledVector<Tensor> made = {random_floats({into_memory.received(), s.width}, random),
                                     random_floats({into_memory.received(), s.top_k}, random)};
  const PooledVector<Tensor> sums = new_rows(made, s.tokens);
  const PooledVector<Tensor> other_sums = new_rows(made, s.tokens);
  run(direct->collect(made, into_memory, {}, sums));
  run(messages->collect(made, by_messages, {}, other_sums));
  require_equal("collect", sums, other_sums);
}

TEST(EpProcesses, BothWaysGiveTheSameBits) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const int ranks : {2, 3, 5}) {
    run_process_ranks({.ranks = ranks}, [&](Group& world) {
      std::mt19937 random(seed + static_cast<unsigned>(world.rank()));
      for (int i = 0; i < 12; ++i) {
        const auto tokens = static_cast<int64_t>(random() % 40);
        compare_ways(world, {tokens, 1 + i * 37, 1 + i % 4, 3}, random);
      }
      compare_ways(world, {1100, 4096, 4, 2}, random);  // written past the caches
    });
  }
}

// Mappings of files of memory.
int64_t mappings() {
  std::ifstream maps("/proc/self/maps");
  int64_t n = 0;
  for (std::string line; std::getline(maps, line);) n += line.find("/memfd:phalanx") != std::string::npos;
  return n;
}

TEST(EpProcesses, ASteadyStateTakesNoMemoryAndMapsNothing) {
  run_process_ranks({.ranks = 3}, [](Group& world) {
    Buffer buffer(world, 6);
    const Tensor idx = random_choices(200, 3, 6, static_cast<uint64_t>(world.rank()));
    const Tensor x = Tensor::zeros({200, 300}, DType::f32);
    const Tensor weights = Tensor::zeros({200, 3}, DType::f32);
    const auto steps = [&](int n) {
      for (int i = 0; i < n; ++i) {
        const Dispatched in = run(buffer.dispatch(x, idx, weights));
        run(buffer.combine(in.x_RD, in.handle, in.weights_RK));
      }
    };
    {  // how many messages come early depends on timing
      std::vector<Tensor> small;
      for (int i = 0; i < 40; ++i) small.push_back(Tensor::empty({8}, DType::i64));
    }
    steps(10);
    const int64_t taken = cpu_allocator().stats().system_allocations;
    const int64_t maps = mappings();
    steps(50);
    if (cpu_allocator().stats().system_allocations != taken) throw Error("memory was taken");
    if (mappings() != maps) throw Error("{} mappings, {} before", mappings(), maps);
  });
}

// It has let the others write into its memory, and dies before they combine.
TEST(EpProcesses, ARankThatIsKilledIsNamedByEverySurvivor) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<ProcessEnd> ends = process_ranks_end({.ranks = 3}, [](Group& world) {
    Buffer buffer(world, 3);
    const Tensor x = Tensor::zeros({500, 1000}, DType::f32);
    const Tensor idx = random_choices(500, 2, 3, static_cast<uint64_t>(world.rank()));
    for (int i = 0;; ++i) {
      const Dispatched in = run(buffer.dispatch(x, idx, Tensor::zeros({500, 2}, DType::f32)));
      if (i == 5 && world.rank() == 1) raise(SIGKILL);
      run(buffer.combine(in.x_RD, in.handle, Tensor()));
    }
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(ends[1].status, 128 + SIGKILL);
  for (const size_t survivor : {0, 2}) {
    EXPECT_THAT(ends[survivor].report, AllOf(HasSubstr("rank 1 (pid "), HasSubstr("is gone"))) << survivor;
  }
}

}  // namespace
}  // namespace phalanx::ep
