// One process of a world that a launcher has started; launch_test.py says what it does:
//   ranks_program SCENARIO [RANK [RANKS_OF_A_PROCESS]]
// `collectives`: every collective is right, and long messages move while ranks compute. `shared`: ranks share
// memory, also some of them, and RANK, if there is one, is killed between a share and its unshare. `hosts`:
// the halves of the ranks share memory, and no rank with one of the other half. The others make RANK
// misbehave in the middle of many all_reduces.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/launch.h"
#include "tests/comm/collective_checks.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

uint8_t byte_of(int from, size_t message, size_t at) {
  return static_cast<uint8_t>(1 + (static_cast<size_t>(from) * 31 + message * 7 + at / 4096 + at) % 255);
}

// Around a ring, all on their way at once, of lengths about those at which a message takes another form. They
// arrive while the ranks compute: nobody waits for them before.
void long_messages(Group& world) {
  constexpr std::array<int64_t, 8> kBytes = {3 << 20,   8192,          8193, (256 << 10) - 1,
                                             256 << 10, (1 << 20) + 1, 0,    (5 << 20) + 17};
  const int next = (world.rank() + 1) % world.size();
  const int last = (world.rank() + world.size() - 1) % world.size();
  PooledVector<P2P> messages;
  for (size_t m = 0; m < kBytes.size(); ++m) {
    messages.push_back(send_to(next, Tensor::zeros({kBytes[m]}, DType::u8)));
    const auto bytes = messages.back().buffer.span<uint8_t>();
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_of(world.rank(), m, i);
    messages.push_back(recv_from(last, Tensor::zeros({kBytes[m]}, DType::u8)));
  }
  Work exchange = world.exchange(messages);
  const volatile uint8_t& last_byte = messages.back().buffer.span<uint8_t>().back();
  for (const auto begin = Clock::now(); last_byte == 0;) {
    if (Clock::now() - begin > std::chrono::seconds(30)) throw Error("nothing moves while a rank computes");
    parallel_for(10, 1, [](int64_t, int64_t) { std::this_thread::sleep_for(std::chrono::microseconds(20)); });
  }
  exchange.wait();
  for (size_t m = 0; m < kBytes.size(); ++m) {
    const auto bytes = messages[2 * m + 1].buffer.span<uint8_t>();
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != byte_of(last, m, i)) throw Error("message {}: byte {} is wrong", m, i);
    }
  }
  world.barrier().wait();
}

void collectives(Group& world) {
  long_messages(world);
  const Tensor drawn = Tensor::zeros({1}, DType::i64);
  drawn.data<int64_t>()[0] = getpid();
  world.broadcast(drawn, 0).wait();
  const int64_t seed = drawn.data<int64_t>()[0];
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32, DType::i64}) {
    for (const int64_t n : {0, 1, 37, 4099, 70'001}) {
      check_collectives(world, {dtype, n, static_cast<uint64_t>(seed)});
    }
  }
}

void shared(Group& world, int culprit) {
  if (!world.shares_memory()) throw Error("the ranks share no memory");
  for (unsigned i = 0; i < 60; ++i) {
    check_share(world, {.dtype = DType::f32, .n = 1 + 100 * int64_t{i % 30}, .seed = i});
  }
  std::vector<int> alike;  // of even number, or odd
  for (int r = world.rank() % 2; r < world.size(); r += 2) alike.push_back(r);
  Group half = world.subgroup("half", alike);
  for (unsigned i = 0; i < 20; ++i) check_share(half, {.dtype = DType::u8, .n = 1000, .seed = i});
  if (culprit < 0) return;
  std::vector<Tensor> peers(static_cast<size_t>(world.size()));
  world.share(Tensor::zeros({1000}, DType::f32), peers).wait();
  if (world.rank() == culprit) raise(SIGKILL);
  try {
    world.unshare(0, 0).wait();
  } catch (...) {
    for (const Tensor& peer : peers) {
      for (const float v : peer.span<float>()) {
        if (v != 0) throw Error("a tensor of a rank that is gone reads {}", v);
      }
    }
    throw;
  }
}

void hosts(Group& world) {
  const int half = world.size() / 2;
  std::vector<int> beside;
  for (int i = 0; i < half; ++i) beside.push_back(world.rank() / half * half + i);
  const int here = world.rank() % half;
  Group host = world.subgroup("host", beside);
  const Group across = world.subgroup("across", std::vector<int>{here, here + half});
  if (world.shares_memory() || across.shares_memory()) throw Error("memory is shared between hosts");
  if (!host.shares_memory()) throw Error("the ranks of a host share no memory");
  if (world.ranks_of_node() != half) throw Error("nodes of {} ranks", world.ranks_of_node());
  for (unsigned i = 0; i < 20; ++i) check_share(host, {.dtype = DType::f32, .n = 1000, .seed = i});
}

void misbehave(Group& world, std::string_view how) {
  const Tensor seven = Tensor::zeros({7}, DType::f32);
  if (how == "killed") raise(SIGKILL);
  if (how == "stopped") raise(SIGSTOP);
  if (how == "throws") throw Error("disk full");
  if (how == "differs") world.all_gather(seven).wait();
  if (how == "late") std::this_thread::sleep_for(std::chrono::seconds(8));
}

void rounds(Group& world, std::string_view how, int culprit) {
  const Tensor x = Tensor::zeros({5'000}, DType::f32);
  const auto end = Clock::now() + std::chrono::seconds(60);
  for (int round = 0; Clock::now() < end; ++round) {
    if (round == 20 && world.rank() == culprit) {
      if (how == "ends") return;
      misbehave(world, how);
    }
    world.all_reduce(x).wait();
  }
}

int process_main(std::string_view scenario, int culprit, int ranks_of_a_process) {
  std::signal(SIGTERM, SIG_IGN);  // mpirun sends it to the survivors before it kills them
  const std::optional<Launched> place = launched_by();
  if (!place) throw Error("start this with a launcher");
  const Deadlines deadlines{
      .progress = scenario == "late" ? std::chrono::milliseconds(2000) : std::chrono::minutes(10),
      .liveness = std::chrono::seconds(5)};
  const int ranks = place->ranks * ranks_of_a_process;
  run_ranks({.transport = place->transport, .ranks = ranks, .deadlines = deadlines}, [&](Group& world) {
    if (scenario == "collectives") return collectives(world);
    if (scenario == "hosts") return hosts(world);
    if (scenario == "shared") return shared(world, culprit);
    rounds(world, scenario, culprit);
  });
  return 0;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  try {
    const auto number = [&](int i, int unless) { return argc > i ? std::atoi(argv[i]) : unless; };
    return phalanx::process_main(argc > 1 ? argv[1] : "", number(2, -1), number(3, 1));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "pid %d: %s\n", getpid(), e.what());
    return 1;
  }
}
