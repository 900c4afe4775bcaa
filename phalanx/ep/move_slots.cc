#include "phalanx/ep/move_slots.h"

#include <algorithm>
#include <cstring>

namespace phalanx::ep {
namespace {

// A slot of the new placement, and the old one whose contents it gets.
struct Move {
  int64_t from;
  int64_t to;
};

// In the order of new slots.
PooledVector<Move> moves(const ReplicaMap& from, const ReplicaMap& to) {
  PooledVector<Move> out;
  PooledVector<size_t> turn(static_cast<size_t>(from.experts()), 0);
  for (int64_t slot = 0; slot < std::ssize(to.phy2log()); ++slot) {
    const int64_t expert = to.phy2log()[static_cast<size_t>(slot)];
    const int32_t rank = to.slots().owner(slot);
    const auto holders = from.replicas(expert);
    const auto own = std::ranges::find(holders, rank, [&](int32_t s) { return from.slots().owner(s); });
    if (own != holders.end()) {
      out.push_back({*own, slot});
    } else {
      out.push_back({holders[turn[static_cast<size_t>(expert)]++ % holders.size()], slot});
    }
  }
  return out;
}

}  // namespace

Task<PooledVector<Tensor>> move_slots(Group& group, PooledVector<Tensor> own, ReplicaMap from,
                                      ReplicaMap to) {
  PHX_CHECK(from.phy2log().size() == to.phy2log().size() && from.experts() == to.experts(),
            "{} slots of {} experts become {} of {}", from.phy2log().size(), from.experts(),
            to.phy2log().size(), to.experts());
  const ExpertMap& slots = to.slots();
  const int me = group.rank();
  const PooledVector<Move> all = moves(from, to);
  PooledVector<Tensor> out;
  PooledVector<P2P> messages;
  for (const Tensor& t : own) {
    const Tensor moved = out.emplace_back(Tensor::empty(t.shape(), t.dtype()));
    for (const Move& m : all) {
      const int sender = from.slots().owner(m.from);
      const int receiver = slots.owner(m.to);
      const int64_t there = m.from - from.slots().first(me);
      const int64_t here = m.to - slots.first(me);
      if (sender == me && receiver == me) {
        const Tensor source = t.slice(there, there + 1);
        if (source.bytes() > 0) std::memcpy(moved.slice(here, here + 1).raw(), source.raw(), source.bytes());
      } else if (sender == me) {
        messages.push_back(send_to(receiver, t.slice(there, there + 1)));
      } else if (receiver == me) {
        messages.push_back(recv_from(sender, moved.slice(here, here + 1)));
      }
    }
  }
  Work work = group.exchange(std::move(messages));
  co_await work;
  co_return out;
}

int64_t slots_moved(const ReplicaMap& from, const ReplicaMap& to) {
  return std::ranges::count_if(
      moves(from, to), [&](const Move& m) { return from.slots().owner(m.from) != to.slots().owner(m.to); });
}

}  // namespace phalanx::ep
