// Ranks that are processes with a GPU each, over NCCL; on a machine of one GPU they share it, and each tells
// NCCL that it is a host of its own. nccl_cuda_test.cc starts it and says what comes of it:
//   nccl_program SCENARIO RANKS [CULPRIT]
// Prints what each rank threw, "rank 1: …", and then "lasted 1.5 s".
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string_view>
#include <thread>

#include "phalanx/comm/mesh.h"
#include "phalanx/comm/transport/nccl.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/tensor/stream.h"
#include "tests/comm/collective_checks.h"
#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

struct Scenario {
  std::string_view name;
  int ranks = 2;
  int culprit = -1;
};

Tensor copied(const Tensor& t) {
  const Tensor c = Tensor::empty(t.shape(), t.dtype(), t.device());
  copy_into(c, t);
  return c;
}

void expect_same(const Group& group, std::string_view what, const Tensor& got, const Tensor& want) {
  const Tensor here = got.to(kCpu);
  const bool alike = here.shape() == want.shape() && here.dtype() == want.dtype();
  if (!alike) throw Error("{} in {}: shape {}, wanted {}", what, group.name(), here.shape(), want.shape());
  for (size_t i = 0; i < want.bytes(); ++i) {
    if (here.raw()[i] == want.raw()[i]) continue;
    throw Error("{} of {} {} on rank {} of group {}: byte {} is {}, wanted {}", what,
                dtype_name(want.dtype()), want.shape(), group.rank(), group.name(), i,
                static_cast<int>(here.raw()[i]), static_cast<int>(want.raw()[i]));
  }
}

// Small integers, so that sums are exact in any order. `salt` tells the tensors of one check apart.
Tensor numbers(const CollectiveCase& c, uint64_t salt, int rank, const Shape& shape) {
  return input_tensor(c, 100 + salt, rank, shape);
}

void check_reductions(Group& group, const CollectiveCase& c, Device gpu) {
  const Tensor flat = numbers(c, 1, group.rank(), {c.n, 3});
  const Tensor cut = numbers(c, 2, group.rank(), {c.n * group.size(), 2});
  for (const Reduce reduce : {Reduce::sum, Reduce::max, Reduce::min}) {
    const Tensor want = group.all_reduce(copied(flat), reduce).wait();
    const Tensor given = flat.to(gpu);
    const Tensor got = group.all_reduce(given, reduce).wait();
    if (got.address() != given.address()) throw Error("all_reduce is not in place");
    expect_same(group, "all_reduce", got, want);
    const Tensor part = group.reduce_scatter(copied(cut), reduce).wait();
    const Tensor whole = cut.to(gpu);
    expect_same(group, "reduce_scatter", group.reduce_scatter(whole, reduce).wait(), part);
    expect_same(group, "reduce_scatter's input", whole, cut);
  }
}

// Some ranks send nothing, or receive nothing, or both.
void check_rows(Group& group, const CollectiveCase& c, Device gpu) {
  const auto rows = [&](int from, int to) {
    return (static_cast<int64_t>(c.seed) + 5 * from + 3 * to) % 4 == 0 || from == 0 ? 0 : c.n * (1 + to) / 2;
  };
  std::vector<int64_t> send;
  std::vector<int64_t> recv;
  int64_t sent = 0;
  for (int r = 0; r < group.size(); ++r) {
    send.push_back(rows(group.rank(), r));
    recv.push_back(rows(r, group.rank()));
    sent += send.back();
  }
  const Tensor x = numbers(c, 3, group.rank(), {sent, 3});
  const Tensor want = group.all_to_all(x, send, recv).wait();
  expect_same(group, "all_to_all", group.all_to_all(x.to(gpu), send, recv).wait(), want);
}

// Both ways around a ring, two messages to each neighbour; a third lies on the CPU, and one is empty.
void check_messages(Group& group, const CollectiveCase& c, Device gpu) {
  const int ranks = group.size();
  const int me = group.rank();
  const auto message = [&](int from, int to, int k) {
    return numbers(c, 10 + static_cast<uint64_t>(4 * to + k), from, {k == 3 ? 0 : c.n + k});
  };
  PooledVector<P2P> batch;
  std::vector<std::pair<Tensor, Tensor>> results;
  std::vector<int> peers = {(me + 1) % ranks};
  if (ranks > 2) peers.push_back((me + ranks - 1) % ranks);
  for (const int peer : peers) {
    for (int k = 0; k < 4; ++k) {
      const Device where = k == 2 ? kCpu : gpu;
      const Tensor want = message(peer, me, k);
      const Tensor got = Tensor::empty(want.shape(), want.dtype(), where);
      batch.push_back(send_to(peer, message(me, peer, k).to(where)));
      batch.push_back(recv_from(peer, got));
      results.emplace_back(got, want);
    }
  }
  group.exchange(std::move(batch)).wait();
  for (const auto& [got, want] : results) expect_same(group, "exchange", got, want);
  // Messages between two ranks of which the others know nothing.
  PooledVector<P2P> one;
  const Tensor last = Tensor::empty({c.n + 1}, c.dtype, gpu);
  if (me == 0) one.push_back(send_to(ranks - 1, message(0, ranks - 1, 1).to(gpu)));
  if (me == ranks - 1) one.push_back(recv_from(0, last));
  group.exchange(std::move(one)).wait();
  if (me == ranks - 1) expect_same(group, "one message", last, message(0, ranks - 1, 1));
}

void check_on_gpu(Group& group, const CollectiveCase& c, Device gpu) {
  if (group.size() == 1) return;
  if (c.dtype != DType::u8) check_reductions(group, c, gpu);
  const Tensor x = numbers(c, 4, group.rank(), {c.n, 1, 2});
  const Tensor gathered = group.all_gather(x).wait();
  expect_same(group, "all_gather", group.all_gather(x.to(gpu)).wait(), gathered);
  for (int root = 0; root < group.size(); ++root) {
    const Tensor want = group.broadcast(copied(x), root).wait();
    expect_same(group, "broadcast", group.broadcast(x.to(gpu), root).wait(), want);
  }
  check_rows(group, c, gpu);
  check_messages(group, c, gpu);
}

void collectives(Group& world, Device gpu) {
  const Tensor drawn = Tensor::zeros({1}, DType::i64);
  drawn.data<int64_t>()[0] = static_cast<int64_t>(std::random_device{}());
  world.broadcast(drawn, 0).wait();
  const auto seed = static_cast<uint64_t>(drawn.data<int64_t>()[0]);
  if (world.rank() == 0) std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  for (const DType dtype :
       {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
    for (const int64_t n : {0, 1, 37, 4099}) check_on_gpu(world, {dtype, n, seed}, gpu);
  }
  check_on_gpu(world, {DType::f32, 300'001, seed}, gpu);
  check_collectives(world, {DType::f32, 1001, seed});  // tensors on the CPU
}

// Groups along the axes of a mesh, several in flight; and groups that come and go.
void groups(Group& world, Device gpu) {
  Mesh mesh(world, {.dp = world.size() / 2, .tp = 2});
  Group& dp = mesh.group(Axis::dp);
  Group& tp = mesh.group(Axis::tp);
  for (const int64_t n : {1, 1000}) {
    check_on_gpu(dp, {DType::f32, n, 7}, gpu);
    check_on_gpu(tp, {DType::bf16, n, 8}, gpu);
  }
  std::vector<Work> works;
  const Tensor one = Tensor::zeros({100'003}, DType::f32);
  std::ranges::fill(one.span<float>(), 1.0F);
  for (int i = 0; i < 12; ++i) works.push_back((i % 2 == 0 ? dp : tp).all_reduce(one.to(gpu)));
  for (int i = 12; i-- > 0;) {  // the last one first
    const Tensor want = copied(one);
    std::ranges::fill(want.span<float>(), static_cast<float>((i % 2 == 0 ? dp : tp).size()));
    expect_same(world, "one of many", works[static_cast<size_t>(i)].wait(), want);
  }
  const std::vector<int> all = [&] {
    std::vector<int> ranks(static_cast<size_t>(world.size()));
    for (int r = 0; r < world.size(); ++r) ranks[static_cast<size_t>(r)] = r;
    return ranks;
  }();
  for (unsigned i = 0; i < 2; ++i) {
    Group passing = world.subgroup("passing", all);
    check_on_gpu(passing, {DType::f32, 100, i}, gpu);
  }
}

// A tensor that is written again right after a collective, and temporaries that go: nobody reads what comes
// later.
void order(Group& world, Device gpu) {
  constexpr int kTurns = 50;
  const int ranks = world.size();
  const int64_t n = 1 << 18;
  const Tensor one = Tensor::empty({n}, DType::f32);
  std::ranges::fill(one.span<float>(), 1.0F);
  const Tensor step = one.to(gpu);
  const Tensor x = Tensor::zeros({n}, DType::f32, gpu);
  const Tensor total = Tensor::zeros({n}, DType::f32, gpu);
  for (int turn = 1; turn <= kTurns; ++turn) {
    add_into(x, step);  // x = turn
    const Tensor received = Tensor::empty({n}, DType::f32, gpu);
    PooledVector<P2P> messages = {send_to((world.rank() + 1) % ranks, add(x, x)),
                                  recv_from((world.rank() + ranks - 1) % ranks, received)};
    Work exchange = world.exchange(std::move(messages));
    const Tensor meanwhile = add(x, step);  // beside the messages
    exchange.wait();
    add_into(total, received);
    const Tensor sum = copied(x);
    world.all_reduce(sum).wait();
    add_into(total, sum);
    add_into(total, meanwhile);
  }
  const float turns = kTurns * (kTurns + 1) / 2.0F;
  const Tensor want = copied(one);
  std::ranges::fill(want.span<float>(), static_cast<float>(2 + ranks) * turns + turns + kTurns);
  expect_same(world, "a sum of turns", total, want);
}

// One of the ranks goes, or is silent, in the middle of many operations; the others wait for their GPUs, or
// fill their queues.
void misbehave(Group& world, const Scenario& s, Device gpu) {
  const Tensor x = Tensor::zeros({5'000}, DType::f64, gpu);
  const Tensor first = Tensor::zeros({1}, DType::f64, gpu);
  const bool waits = s.name != "flooded";
  const auto end = Clock::now() + std::chrono::seconds(60);
  for (int round = 0; Clock::now() < end; ++round) {
    if (round == 20 && world.rank() == s.culprit) {
      if (s.name == "silent") std::this_thread::sleep_for(std::chrono::seconds(20));
      if (s.name == "throws") throw Error("disk full");
      raise(s.name == "stopped" ? SIGSTOP : SIGKILL);
    }
    world.all_reduce(x).wait();
    for (int i = 0; i < (waits ? 1 : 3000); ++i) add_into(first, first);
    if (waits) (void)number_of(first);
  }
}

void be_rank(Group& world, const Scenario& s) {
  if (s.name != "duplicate") {
    setenv("NCCL_HOSTID", std::to_string(world.rank()).c_str(), 1);
    setenv("NCCL_IB_DISABLE", "1", 1);
  }
  const Device gpu = device_of_rank(Device::Kind::cuda, world.rank_on_host());
  const DeviceScope scope(gpu);
  if (s.name == "collectives") {
    collectives(world, gpu);
  } else if (s.name == "groups") {
    groups(world, gpu);
  } else if (s.name == "order") {
    order(world, gpu);
  } else {
    misbehave(world, s, gpu);
  }
  synchronise(gpu);
}

int process_main(const Scenario& s) {
  // Room for NCCL to start; "silent" waits for the first of them.
  const Deadlines deadlines{.progress = std::chrono::seconds(s.name == "silent" ? 8 : 60),
                            .liveness = std::chrono::seconds(s.name == "stopped" ? 5 : 10)};
  const auto begin = Clock::now();
  const Reports reports =
      reports_of_processes({.ranks = s.ranks, .deadlines = deadlines, .wrap = over_nccl(deadlines)},
                           [&](Group& world) { be_rank(world, s); });
  int failed = 0;
  for (size_t r = 0; r < reports.of_rank.size(); ++r) {
    if (reports.of_rank[r].empty()) continue;
    ++failed;
    std::printf("rank %zu: %s\n", r, reports.of_rank[r].c_str());
  }
  std::printf("lasted %.1f s\n", std::chrono::duration<double>(Clock::now() - begin).count());
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  try {
    const auto number = [&](int i, int unless) { return argc > i ? std::atoi(argv[i]) : unless; };
    return phalanx::process_main(
        {.name = argc > 1 ? argv[1] : "", .ranks = number(2, 2), .culprit = number(3, -1)});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
