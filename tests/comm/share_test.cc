// Ranks that are processes in each other's memory: what share promises, and what becomes of a tensor whose
// owner, or whose user, is gone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "phalanx/comm/lifeline/hub.h"
#include "phalanx/comm/transport/host_memory.h"
#include "tests/comm/collective_checks.h"
#include "tests/comm/shared_value.h"
#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Throws on the rank that sees it: expectations of a rank's process do not reach the test's.
void require(bool holds, const char* what) {
  if (!holds) throw Error("{}", what);
}

std::vector<Tensor> peers_of(const Group& group) {
  return std::vector<Tensor>(static_cast<size_t>(group.size()));
}

int64_t open_files() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return std::distance(begin(all), end(all));
}

// Mappings of files of memory.
int64_t mappings() {
  std::ifstream maps("/proc/self/maps");
  int64_t n = 0;
  for (std::string line; std::getline(maps, line);) n += line.find("/memfd:phalanx") != std::string::npos;
  return n;
}

int64_t segments_left() {
  int64_t n = 0;
  for (const auto& file : std::filesystem::directory_iterator("/dev/shm")) {
    n += file.path().filename().string().starts_with(format("phalanx-{}", getpid()));
  }
  return n;
}

// Fills many new tensors with a byte.
std::vector<Tensor> filled(int n, const Shape& shape, uint8_t value) {
  std::vector<Tensor> all;
  for (int i = 0; i < n; ++i) {
    all.push_back(Tensor::empty(shape, DType::u8));
    std::ranges::fill(all.back().span<uint8_t>(), value);
  }
  return all;
}

TEST(Share, AllProcessesWriteIntoAllTensors) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (int ranks = 1; ranks <= 6; ++ranks) {
    run_process_ranks({.ranks = ranks}, [&](Group& world) {
      require(world.shares_memory(), "no shared memory");
      for (const DType dtype : {DType::f64, DType::bf16, DType::u8}) {
        for (const int64_t n : {0, 1, 37, 40'003}) check_share(world, {dtype, n, seed});
      }
    });
  }
}

TEST(Share, TensorsLargerThanARegionAndThanDevShmOfAContainer) {
  run_process_ranks({.ranks = 2}, [](Group& world) {
    constexpr int64_t kBytes = (int64_t{96} << 20) + 5;
    constexpr int64_t kStep = 4099;
    const auto value = [](int owner, int64_t i) { return static_cast<uint8_t>(i / kStep * 3 + owner); };
    const Tensor mine = Tensor::empty({kBytes}, DType::u8);
    std::vector<Tensor> peers = peers_of(world);
    world.share(mine, peers).wait();
    const int other = 1 - world.rank();
    uint8_t* const theirs = peers[static_cast<size_t>(other)].data<uint8_t>();
    for (int64_t i = 0; i < kBytes; i += kStep) theirs[i] = value(other, i);
    theirs[kBytes - 1] = 99;
    peers.clear();
    world.unshare(0, 0).wait();
    for (int64_t i = 0; i < kBytes; i += kStep) {
      require(mine.data<uint8_t>()[i] == value(world.rank(), i), "a wrong byte");
    }
    require(mine.data<uint8_t>()[kBytes - 1] == 99, "a wrong last byte");
  });
}

TEST(Share, OfSomeRanksAndOfNothing) {
  run_process_ranks({.ranks = 5}, [](Group& world) {
    std::vector<int> alike;
    for (int r = world.rank() % 2; r < 5; r += 2) alike.push_back(r);
    Group half = world.subgroup("half", alike);
    require(half.shares_memory(), "no shared memory in a half");
    for (unsigned i = 0; i < 20; ++i) check_share(half, {DType::i32, 100, i});
    std::vector<Tensor> peers = peers_of(world);
    world.share(world.rank() == 1 ? Tensor() : Tensor::zeros({2, 0, 3}, DType::f32), peers).wait();
    for (int r = 0; r < 5; ++r) {
      const Tensor& peer = peers[static_cast<size_t>(r)];
      require(peer.defined() == (r != 1), "an undefined tensor became one");
      require(r == 1 || peer.shape() == Shape{2, 0, 3}, "another shape");
    }
    world.unshare(0, 0).wait();
  });
}

TEST(Share, CountsOnlyTheBytesOfUnshare) {
  run_process_ranks({.ranks = 3}, [](Group& world) {
    std::vector<Tensor> peers = peers_of(world);
    world.share(Tensor::zeros({1000}, DType::f32), peers).wait();
    world.unshare(5, 7).wait();
    require(world.traffic() == Traffic{2, 5, 7}, "other bytes were counted");
  });
}

TEST(Share, ASteadyStateTakesNoMemoryMapsNothingAndOpensNothing) {
  run_process_ranks({.ranks = 3}, [](Group& world) {
    std::mt19937 random(static_cast<unsigned>(world.rank()));
    const auto steps = [&](int n) {
      for (int i = 0; i < n; ++i) {
        const int64_t rows = 5'000 + static_cast<int64_t>(random() % 50);
        std::vector<Tensor> peers = peers_of(world);
        const Tensor x = Tensor::empty({rows, 3}, DType::f32);
        const Tensor y = Tensor::empty({3}, DType::f32);
        world.share(x, peers).wait();
        world.share(y, peers).wait();
        peers.clear();
        world.unshare(0, 0).wait();
      }
    };
    (void)filled(40, {100}, 0);  // how many messages come early depends on timing
    steps(20);
    const MemoryStats warm = cpu_allocator().stats();
    const int64_t maps = mappings();
    const int64_t files = open_files();
    require(maps >= 3, "nothing is mapped");
    steps(300);
    require(cpu_allocator().stats().system_allocations == warm.system_allocations, "memory was taken");
    require(cpu_allocator().stats().in_use < warm.in_use + 4096, "blocks are missing");
    require(mappings() == maps, "more is mapped");
    require(open_files() == files, "more is open");
  });
}

TEST(Share, ATensorLivesAsLongAsAnotherRankRefersToIt) {
  run_process_ranks({.ranks = 3}, [](Group& world) {
    for (const int64_t n : {10'000, 100'000}) {
      const size_t before = cpu_allocator().stats().in_use;
      Tensor mine = filled(1, {n}, static_cast<uint8_t>(10 + world.rank())).front();
      std::vector<Tensor> peers = peers_of(world);
      world.share(mine, peers).wait();
      std::vector<Tensor> kept = peers;
      peers.clear();
      mine = Tensor();
      kept[static_cast<size_t>(world.rank())] = Tensor();
      world.unshare(0, 0).wait();
      std::vector<Tensor> others = filled(20, {n}, 77);
      world.barrier().wait();
      for (int r = 0; r < 3; ++r) {
        if (r == world.rank()) continue;
        for (const uint8_t v : kept[static_cast<size_t>(r)].span<uint8_t>()) {
          require(v == 10 + r, "a block was used again while another rank had it");
        }
      }
      others.clear();
      require(cpu_allocator().stats().in_use > before + static_cast<size_t>(n),
              "what another rank has does not count");
      world.barrier().wait();
      kept.clear();
      world.barrier().wait();
      (void)filled(1, {n}, 0);  // whoever takes a block sees what has come back
      require(cpu_allocator().stats().in_use < before + 4096, "a block is lost");
    }
  });
}

// An owner gives up and goes on using its memory, while another rank still writes to what it was given.
TEST(Share, ALateWriterDoesNotReachWhatItsOwnerUsesNow) {
  SharedValue<std::atomic<int>> stage;
  const auto wait_for = [&](int n) {
    while (stage.value() < n) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  const Reports r = reports_of_processes({.ranks = 2}, [&](Group& world) {
    std::vector<Tensor> peers = peers_of(world);
    constexpr int64_t kBytes = 70'000;
    if (world.rank() == 1) {
      world.share(filled(1, {kBytes}, 1).front(), peers).wait();
      wait_for(1);
      std::ranges::fill(peers[0].span<uint8_t>(), 2);  // too late
      stage.value() = 2;
      world.unshare(0, 0).wait();
      return;
    }
    try {
      world.share(filled(1, {kBytes}, 1).front(), peers).wait();
      peers.clear();
      throw std::runtime_error("changed its mind");
    } catch (const std::runtime_error&) {
      const std::vector<Tensor> others = filled(30, {kBytes}, 3);
      stage.value() = 1;
      wait_for(2);
      for (const Tensor& t : others) {
        for (const uint8_t v : t.span<uint8_t>()) require(v == 3, "a late rank wrote into another tensor");
      }
      throw;
    }
  });
  EXPECT_EQ(r.of_rank[0], "changed its mind");
  EXPECT_THAT(r.of_rank[1], HasSubstr("rank 0: changed its mind"));
}

TEST(Share, OfARankThatIsKilledBeforeItUnshares) {
  const int64_t files = open_files();
  const auto start = std::chrono::steady_clock::now();
  const Reports r = reports_of_processes({.ranks = 4}, [](Group& world) {  // no short deadline
    std::vector<Tensor> peers = peers_of(world);
    const Tensor mine = filled(1, {3'000'000}, static_cast<uint8_t>(world.rank())).front();
    world.share(mine, peers).wait();
    if (world.rank() == 2) raise(SIGKILL);
    try {
      world.unshare(0, 0).wait();
    } catch (const CommError&) {
      for (int p = 0; p < 4; ++p) {  // the dead one's memory too, read and written
        const auto theirs = peers[static_cast<size_t>(p)].span<uint8_t>();
        require(std::ranges::all_of(theirs, [&](uint8_t v) { return v == p; }), "its memory has changed");
        if (p == 2) std::ranges::fill(theirs, static_cast<uint8_t>(p));
      }
      throw;
    }
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  for (const size_t survivor : {0, 1, 3}) {
    EXPECT_THAT(r.of_rank[survivor],
                AllOf(HasSubstr("rank 2 (pid "), HasSubstr("is gone"), HasSubstr("unshare")))
        << survivor;
  }
  EXPECT_EQ(segments_left(), 0);
  EXPECT_EQ(open_files(), files);
}

TEST(Share, OnlyOfTheRanksOwnMemory) {
  const Tensor from_before = filled(1, {40}, 8).front();
  const Reports r = reports_of_processes({.ranks = 2}, [&](Group& world) {
    Tensor from_scope;
    {
      const AllocatorScope scope;
      from_scope = filled(1, {40}, 8).front();
    }
    for (const Tensor& x : {from_before, from_scope}) {
      const Tensor copy = world.shareable(x);
      require(copy.raw() != x.raw() && world.shareable(copy).raw() == copy.raw(), "not one copy");
      std::vector<Tensor> peers = peers_of(world);
      world.share(copy, peers).wait();
      for (const Tensor& peer : peers) {
        require(std::ranges::all_of(peer.span<uint8_t>(), [](uint8_t v) { return v == 8; }), "another value");
        require(world.shareable(peer).raw() == peer.raw() || peer.raw() != copy.raw(),
                "its own is not its own");
      }
      world.unshare(0, 0).wait();
    }
    std::vector<Tensor> peers = peers_of(world);
    world.share(from_before, peers).wait();
  });
  EXPECT_THAT(r.of_world, HasSubstr("Group::shareable copies it"));
}

// Files of memory could not grow there.
TEST(Share, WhereTheSizeOfFilesIsLimitedRanksSendMessages) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit one_gib = {.rlim_cur = 1 << 30, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &one_gib), 0);
  EXPECT_NO_THROW(run_process_ranks({.ranks = 3}, [](Group& world) {
    require(!world.shares_memory(), "shared memory");
    check_collectives(world, {DType::f32, 1000, 5});
  }));
  setrlimit(RLIMIT_FSIZE, &before);
}

// One process in one world after the other.
TEST(Share, AWorldLeavesNothingOpenOrMapped) {
  run_process_ranks({.ranks = 2}, [](Group& outer) {
    outer.barrier().wait();
    const int64_t files = open_files();
    const int64_t maps = mappings();
    for (int i = 0; i < 3; ++i) {
      const Tensor port = Tensor::zeros({1}, DType::i32);
      std::optional<Hub> hub;
      if (outer.rank() == 0) {
        const auto [listener, number] = listen_at("127.0.0.1", 0);
        port.data<int32_t>()[0] = number;
        hub.emplace(HubOptions{.listener = listener, .ranks = 2, .key = "inner"});
      }
      outer.broadcast(port, 0).wait();
      join_process_ranks({.rank = outer.rank(), .ranks = 2, .port = port.data<int32_t>()[0], .key = "inner"},
                         [](Group& inner) {
                           check_share(inner, {DType::f32, 100'000, 1});
                         });
      if (hub) hub->finish();
      hub.reset();
      outer.barrier().wait();
    }
    require(open_files() == files, "files are left open");
    require(mappings() == maps, "memory is left mapped");
  });
}

// Ranks 0 and 1 have files, rank 2 has none that they find, as on another host.
TEST(HostMemory, IsSharedByTheRanksThatReachEachOther) {
  const auto [listener, port] = listen_at("127.0.0.1", 0);
  Hub hub({.listener = listener, .ranks = 3, .key = "key"});
  std::vector<std::future<void>> ranks;
  for (int r = 0; r < 3; ++r) {
    ranks.push_back(std::async(std::launch::async, [r, to = port] {
      Lifeline lifeline({.rank = r, .ranks = 3, .port = to, .key = "key"});
      HostMemory memory(r, 3);
      const std::vector<std::string> said = [&] {
        if (r < 2) return memory.meet(lifeline, format("text {}", r));
        lifeline.share(pack_texts({"text 2", "1/fd/3 phalanx-of-another-host"}));
        lifeline.share(pack_texts({"1"}));  // reaches rank 1, which does not reach it
        return std::vector<std::string>{"text 0", "text 1", "text 2"};
      }();
      EXPECT_THAT(said, testing::ElementsAre("text 0", "text 1", "text 2"));
      if (r == 2) return;
      const auto shared = [&](std::vector<int> members) {
        return memory.shared({.name = "some", .members = std::move(members)});
      };
      EXPECT_TRUE(shared({0, 1}));
      EXPECT_TRUE(shared({2}));
      EXPECT_FALSE(shared({0, 1, 2}));
      EXPECT_FALSE(shared({0, 2}));
      EXPECT_FALSE(shared({1, 2}));
    }));
  }
  for (std::future<void>& rank : ranks) rank.get();
}

}  // namespace
}  // namespace phalanx
