#include "phalanx/comm/transport/transport.h"

#include "phalanx/comm/collectives.h"

namespace phalanx {

std::unique_ptr<GroupLink> Transport::open_group(const GroupInfo&) { return nullptr; }

void Transport::idle(FunctionRef<bool()> look_again, std::chrono::microseconds limit) {
  struct Armed {
    Bell& bell;
    uint32_t seen = bell.arm();
    ~Armed() { bell.disarm(); }
  } armed{page(rank())->bell};
  if (!look_again()) armed.bell.sleep(armed.seen, limit);
}

void Transport::wake_all() noexcept {
  for (int r = 0; r < size(); ++r) {
    if (RankPage* p = page(r)) p->bell.ring();
  }
}

Task<> Transport::all_reduce(Call call, Tensor x, Reduce reduce) {
  return collectives::all_reduce(call, std::move(x), reduce);
}
Task<> Transport::reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce) {
  return collectives::reduce_scatter(call, std::move(x), std::move(out), reduce);
}
Task<> Transport::all_gather(Call call, Tensor x, Tensor out) {
  return collectives::all_gather(call, std::move(x), std::move(out));
}
Task<> Transport::all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                             PooledVector<int64_t> recv_rows) {
  return collectives::all_to_all(call, std::move(x), std::move(out), std::move(send_rows),
                                 std::move(recv_rows));
}
Task<> Transport::broadcast(Call call, Tensor x, int root) {
  return collectives::broadcast(call, std::move(x), root);
}
Task<> Transport::barrier(Call call) { return collectives::barrier(call); }

bool Transport::shares_memory(const GroupInfo& group) const { return group.size() == 1; }
Tensor Transport::shareable(const GroupInfo&, Tensor x) const { return x; }
Task<> Transport::share(Call call, Tensor x, std::span<Tensor> peers) {
  PHX_CHECK(call.size() == 1, "{}: its ranks share no memory", call.text());
  peers[0] = std::move(x);
  co_return;
}

}  // namespace phalanx
