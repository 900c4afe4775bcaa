#include "phalanx/comm/group.h"

#include <algorithm>
#include <numeric>

#include "phalanx/comm/reduce.h"

namespace phalanx {
namespace {

using Kind = Fingerprint::Kind;

Task<> exchange_once(Call call, PooledVector<P2P> messages) {
  Exchange exchange = call.exchange(std::move(messages));
  co_await Suspend(exchange);
}

Task<> counted_barrier(Call call, int64_t sent, int64_t received) {
  call.count(sent, received);
  co_await call.transport().barrier(call);
}

int64_t sum(std::span<const int64_t> v) { return std::accumulate(v.begin(), v.end(), int64_t{0}); }

}  // namespace

Call Group::next_call(const Fingerprint& fingerprint) {
  ++info_->traffic[static_cast<size_t>(fingerprint.kind)].calls;
  return Call(engine_->transport(), *info_, sequence_++, fingerprint);
}

Traffic Group::traffic() const {
  Traffic all;
  for (const Traffic& t : info_->traffic) all += t;
  return all;
}

Work Group::all_reduce(Tensor x, Reduce reduce) {
  PHX_CHECK(can_reduce(x.dtype()), "all_reduce of {}", dtype_name(x.dtype()));
  const Call call =
      next_call({.kind = Kind::all_reduce, .dtype = x.dtype(), .reduce = reduce, .numel = x.numel()});
  Task<> task = engine_->transport().all_reduce(call, x, reduce);
  const size_t bytes = x.bytes();
  return engine_->start(call, std::move(task), std::move(x), bytes);
}

Work Group::reduce_scatter(Tensor x, Reduce reduce) {
  PHX_CHECK(can_reduce(x.dtype()), "reduce_scatter of {}", dtype_name(x.dtype()));
  PHX_CHECK(x.rows() % size() == 0, "reduce_scatter of {} rows over {} ranks", x.rows(), size());
  const Call call =
      next_call({.kind = Kind::reduce_scatter, .dtype = x.dtype(), .reduce = reduce, .numel = x.numel()});
  const Tensor out = Tensor::empty(x.shape().with_rows(x.rows() / size()), x.dtype(), x.device());
  return engine_->start(call, engine_->transport().reduce_scatter(call, x, out, reduce), out, x.bytes());
}

Work Group::all_gather(Tensor x) {
  const Call call = next_call({.kind = Kind::all_gather, .dtype = x.dtype(), .numel = x.numel()});
  const Tensor out = Tensor::empty(x.shape().with_rows(x.rows() * size()), x.dtype(), x.device());
  return engine_->start(call, engine_->transport().all_gather(call, x, out), out, x.bytes());
}

Work Group::all_to_all(Tensor x, std::span<const int64_t> send_rows, std::span<const int64_t> recv_rows,
                       const Tensor& into) {
  PHX_CHECK(static_cast<int>(send_rows.size()) == size() && static_cast<int>(recv_rows.size()) == size(),
            "all_to_all with {} and {} counts on {} ranks", send_rows.size(), recv_rows.size(), size());
  PHX_CHECK(std::ranges::all_of(send_rows, [](int64_t n) { return n >= 0; }) && sum(send_rows) == x.rows(),
            "all_to_all of {} rows with counts {}", x.rows(), send_rows);
  PHX_CHECK(std::ranges::all_of(recv_rows, [](int64_t n) { return n >= 0; }), "all_to_all receives {} rows",
            recv_rows);
  const Call call = next_call({.kind = Kind::all_to_all, .dtype = x.dtype(), .numel = x.row_size()});
  const Shape shape = x.shape().with_rows(sum(recv_rows));
  PHX_CHECK(
      !into.defined() ||
          (into.dtype() == x.dtype() && into.rows() >= shape[0] && into.shape().with_rows(shape[0]) == shape),
      "all_to_all of {} {} into {} {}", dtype_name(x.dtype()), shape, dtype_name(into.dtype()), into.shape());
  const Tensor out = into.defined() ? into.slice(0, shape[0]) : Tensor::empty(shape, x.dtype(), x.device());
  PooledVector<int64_t> send(send_rows.begin(), send_rows.end());
  PooledVector<int64_t> recv(recv_rows.begin(), recv_rows.end());
  Task<> task = engine_->transport().all_to_all(call, x, out, std::move(send), std::move(recv));
  return engine_->start(call, std::move(task), out, x.bytes());
}

Work Group::broadcast(Tensor x, int root) {
  PHX_CHECK(root >= 0 && root < size(), "root {} of {} ranks", root, size());
  const Call call =
      next_call({.kind = Kind::broadcast, .dtype = x.dtype(), .root = root, .numel = x.numel()});
  return engine_->start(call, engine_->transport().broadcast(call, x, root), x, x.bytes());
}

Work Group::exchange(PooledVector<P2P> messages) {
  size_t bytes = 0;
  for (const P2P& m : messages) {
    PHX_CHECK(m.peer >= 0 && m.peer < size() && m.peer != rank(), "a message of rank {} with rank {} of {}",
              rank(), m.peer, size());
    if (m.kind == P2P::Kind::send) bytes += m.buffer.bytes();
  }
  const Call call = next_call({.kind = Kind::exchange});
  return engine_->start(call, exchange_once(call, std::move(messages)), {}, bytes);
}

Work Group::barrier() {
  const Call call = next_call({.kind = Kind::barrier});
  return engine_->start(call, engine_->transport().barrier(call), {}, 0);
}

Work Group::share(Tensor x, std::span<Tensor> peers) {
  PHX_CHECK(std::ssize(peers) == size(), "share: {} peers of {} ranks", peers.size(), size());
  const Call call = next_call({.kind = Kind::share, .dtype = x.dtype()});
  return engine_->start(call, engine_->transport().share(call, std::move(x), peers), {}, 0);
}

Work Group::unshare(int64_t sent, int64_t received) {
  const Call call = next_call({.kind = Kind::unshare});
  return engine_->start(call, counted_barrier(call, sent, received), {}, static_cast<size_t>(sent));
}

Work Group::operate(const Fingerprint& fingerprint, FunctionRef<Task<>(Call)> task, Tensor result,
                    size_t bytes) {
  const Call call = next_call(fingerprint);
  return engine_->start(call, task(call), std::move(result), bytes);
}

void Group::excuse(int rank, bool excused) {
  PHX_CHECK(rank >= 0 && rank < size(), "rank {} of {} is excused", rank, size());
  info_->excused.resize(static_cast<size_t>(size()));
  info_->excused[static_cast<size_t>(rank)] = excused;
}

int Group::ranks_of_node() const {
  const auto all_share = [&](int of_node) {
    for (int first = 0; first < size(); first += of_node) {
      GroupInfo node{.name = "node"};
      const auto begin = info_->members.begin() + first;
      node.members.assign(begin, begin + of_node);
      if (!engine_->transport().shares_memory(node)) return false;
    }
    return true;
  };
  int most = size();
  while (size() % most != 0 || !all_share(most)) --most;
  return most;
}

Group Group::subgroup(std::string name, std::span<const int> members) const {
  GroupInfo info{.name = std::move(name)};
  for (const int m : members) {
    PHX_CHECK(m >= 0 && m < size(), "member {} of a group of {}", m, size());
    if (m == rank()) info.rank = static_cast<int>(info.members.size());
    info.members.push_back(info_->members[static_cast<size_t>(m)]);
  }
  PHX_CHECK(std::ranges::find(members, rank()) != members.end(), "rank {} makes a group that it is not in",
            rank());
  return Group(*engine_, std::move(info));
}

}  // namespace phalanx
