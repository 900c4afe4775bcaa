#include "phalanx/comm/clock_shift.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <limits>
#include <vector>

#include "phalanx/comm/gather_numbers.h"

namespace phalanx {
namespace {

constexpr int kRounds = 16;

// One number from rank `from` to rank `to`; the others look on.
int64_t pass(Group& world, int from, int to, int64_t number) {
  const Tensor message = Tensor::of(Shape{1}, std::span<const int64_t>(&number, 1));
  PooledVector<P2P> messages;
  if (world.rank() == from) messages.push_back(send_to(to, message));
  if (world.rank() == to) messages.push_back(recv_from(from, message));
  world.exchange(std::move(messages)).wait();
  return message.data<int64_t>()[0];
}

// Of `rank`, as it measures; 0 elsewhere.
int64_t measure(Group& world, int rank, FunctionRef<int64_t()> now) {
  int64_t shortest = std::numeric_limits<int64_t>::max();
  int64_t shift = 0;
  for (int i = 0; i < kRounds; ++i) {
    const int64_t asked = now();
    pass(world, rank, 0, 0);
    const int64_t theirs = pass(world, 0, rank, now());
    const int64_t answered = now();
    if (answered - asked >= shortest) continue;
    shortest = answered - asked;
    shift = theirs - (asked + shortest / 2);
  }
  return world.rank() == rank ? shift : 0;
}

}  // namespace

uint64_t clock_host() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return std::hash<std::string>()(id);
}

int64_t clock_shift(Group& world, uint64_t host, FunctionRef<int64_t()> now) {
  const std::vector<int64_t> hosts = gather_numbers(world, static_cast<int64_t>(host));
  const auto first_of = [&](int64_t h) {
    return static_cast<int>(std::ranges::find(hosts, h) - hosts.begin());
  };
  int64_t measured = 0;
  for (int r = 1; r < world.size(); ++r) {
    if (first_of(hosts[static_cast<size_t>(r)]) == r) measured += measure(world, r, now);
  }
  const std::vector<int64_t> shifts = gather_numbers(world, measured);
  return shifts[static_cast<size_t>(first_of(static_cast<int64_t>(host)))];
}

}  // namespace phalanx
