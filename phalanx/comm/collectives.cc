#include "phalanx/comm/collectives.h"

#include <bit>

#include "phalanx/comm/reduce.h"

namespace phalanx::collectives {
namespace {

void copy(Tensor to, const Tensor& from) {
  PHX_CHECK(to.bytes() == from.bytes(), "copy of {} bytes to {}", from.bytes(), to.bytes());
  if (to.address() != from.address()) copy_into(std::move(to), from);
}

Tensor part(const Tensor& flat, int parts, int index) {
  const Range r = part_of(flat.rows(), parts, index);
  return flat.slice(r.begin, r.end);
}

// out = parts of rank 0 ∘ rank 1 ∘ …, where this rank's own is `own` and the others' lie in `incoming` [R,
// n].
void reduce_in_rank_order(Tensor out, const Tensor& own, const Tensor& incoming, int rank, Reduce reduce) {
  PooledVector<Tensor> in;
  for (int r = 0; r < incoming.rows(); ++r) in.push_back(incoming.slice(r, r + 1));
  in[static_cast<size_t>(rank)] = own;
  reduce_tensors(out, in, reduce);
}

Tensor row(const Tensor& x, int index) { return x.slice(index, index + 1); }

bool small(int64_t bytes) { return bytes <= kSmallBytes; }

// Of a binomial tree: how many ranks this place sends to.
int children(int place, int ranks) {
  int n = 0;
  for (int reach = 1; reach < ranks; reach *= 2) n += place < reach && place + reach < ranks ? 1 : 0;
  return n;
}

int ceil_log2(int n) { return static_cast<int>(std::bit_width(static_cast<unsigned>(n - 1))); }

}  // namespace

Range part_of(int64_t n, int parts, int index) { return {n * index / parts, n * (index + 1) / parts}; }

Cost cost(const Fingerprint& call, int ranks, int rank) {
  if (ranks == 1) return {};
  const int64_t item = static_cast<int64_t>(dtype_size(call.dtype));
  const int64_t all = call.numel * item;
  const int64_t others = ranks - 1;
  switch (call.kind) {
    case Fingerprint::Kind::all_reduce: {
      if (small(all)) return {.steps = 1, .sent = all * others, .received = all * others};
      const int64_t own = part_of(call.numel, ranks, rank).size() * item;
      const int64_t bytes = all - own + own * others;
      return {.steps = 2, .sent = bytes, .received = bytes};
    }
    case Fingerprint::Kind::reduce_scatter:
      return {.steps = 1, .sent = all / ranks * others, .received = all / ranks * others};
    case Fingerprint::Kind::all_gather:
      return {.steps = 1, .sent = all * others, .received = all * others};
    case Fingerprint::Kind::broadcast: {
      const int place = (rank - call.root + ranks) % ranks;
      return {
          .steps = ceil_log2(ranks), .sent = children(place, ranks) * all, .received = place == 0 ? 0 : all};
    }
    case Fingerprint::Kind::barrier:
      return {.steps = ceil_log2(ranks)};
    case Fingerprint::Kind::all_to_all:
    case Fingerprint::Kind::exchange:
    case Fingerprint::Kind::share:
    case Fingerprint::Kind::unshare:
    case Fingerprint::Kind::low_latency_dispatch:
    case Fingerprint::Kind::low_latency_combine:
      break;
  }
  PHX_CHECK(false, "the bytes of {} are its caller's", call.text());
}

Task<> all_reduce(Call call, Tensor x, Reduce reduce) {
  const int ranks = call.size();
  const int me = call.rank();
  if (ranks == 1) co_return;
  const Tensor flat = x.view({x.numel()});
  const bool whole = small(static_cast<int64_t>(x.bytes()));
  const Tensor mine = whole ? flat : part(flat, ranks, me);
  const Tensor incoming = Tensor::empty({ranks, mine.rows()}, x.dtype(), x.device());
  PooledVector<P2P> messages;
  for (int i = 1; i < ranks; ++i) {
    const int to = (me + i) % ranks;
    const int from = (me + ranks - i) % ranks;
    messages.push_back(send_to(to, whole ? flat : part(flat, ranks, to)));
    messages.push_back(recv_from(from, row(incoming, from)));
  }
  Exchange to_reduce = call.exchange(std::move(messages));
  co_await Suspend(to_reduce);
  reduce_in_rank_order(mine, mine, incoming, me, reduce);
  if (whole) co_return;
  messages = {};
  for (int i = 1; i < ranks; ++i) {
    const int from = (me + ranks - i) % ranks;
    messages.push_back(send_to((me + i) % ranks, mine));
    messages.push_back(recv_from(from, part(flat, ranks, from)));
  }
  Exchange to_all = call.exchange(std::move(messages));
  co_await Suspend(to_all);
}

Task<> reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce) {
  const int ranks = call.size();
  const int me = call.rank();
  const int64_t n = out.rows();
  const Tensor own = x.slice(me * n, (me + 1) * n);
  if (ranks == 1) {
    copy(out, own);
    co_return;
  }
  const Tensor incoming = Tensor::empty({ranks, out.numel()}, x.dtype(), x.device());
  PooledVector<P2P> messages;
  for (int i = 1; i < ranks; ++i) {
    const int to = (me + i) % ranks;
    const int from = (me + ranks - i) % ranks;
    messages.push_back(send_to(to, x.slice(to * n, (to + 1) * n)));
    messages.push_back(recv_from(from, row(incoming, from)));
  }
  Exchange exchange = call.exchange(std::move(messages));
  co_await Suspend(exchange);
  reduce_in_rank_order(out, own, incoming, me, reduce);
}

Task<> all_gather(Call call, Tensor x, Tensor out) {
  const int ranks = call.size();
  const int me = call.rank();
  const int64_t n = x.rows();
  PooledVector<P2P> messages;
  for (int i = 1; i < ranks; ++i) {
    const int from = (me + ranks - i) % ranks;
    messages.push_back(send_to((me + i) % ranks, x));
    messages.push_back(recv_from(from, out.slice(from * n, (from + 1) * n)));
  }
  copy(out.slice(me * n, (me + 1) * n), x);
  Exchange exchange = call.exchange(std::move(messages));
  co_await Suspend(exchange);
}

Task<> all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                  PooledVector<int64_t> recv_rows) {
  PooledVector<P2P> messages;
  int64_t sent = 0;
  int64_t received = 0;
  for (int r = 0; r < call.size(); ++r) {
    const Tensor from = x.slice(sent, sent + send_rows[static_cast<size_t>(r)]);
    const Tensor to = out.slice(received, received + recv_rows[static_cast<size_t>(r)]);
    sent += from.rows();
    received += to.rows();
    if (r == call.rank()) {
      copy(to, from);
      continue;
    }
    messages.push_back(send_to(r, from));
    messages.push_back(recv_from(r, to));
  }
  Exchange exchange = call.exchange(std::move(messages));
  co_await Suspend(exchange);
}

Task<> broadcast(Call call, Tensor x, int root) {
  const int ranks = call.size();
  const int place = (call.rank() - root + ranks) % ranks;  // the root is place 0
  for (int reach = 1; reach < ranks; reach *= 2) {
    PooledVector<P2P> messages;
    if (place < reach && place + reach < ranks) {
      messages.push_back(send_to((place + reach + root) % ranks, x));
    } else if (place >= reach && place < 2 * reach) {
      messages.push_back(recv_from((place - reach + root) % ranks, x));
    }
    Exchange exchange = call.exchange(std::move(messages));
    co_await Suspend(exchange);
  }
}

Task<> barrier(Call call) {
  const int ranks = call.size();
  const Tensor nothing = Tensor::empty({0}, DType::u8);
  for (int reach = 1; reach < ranks; reach *= 2) {
    PooledVector<P2P> messages = {send_to((call.rank() + reach) % ranks, nothing),
                                  recv_from((call.rank() + ranks - reach) % ranks, nothing)};
    Exchange exchange = call.exchange(std::move(messages));
    co_await Suspend(exchange);
  }
}

}  // namespace phalanx::collectives
