#include "tests/comm/collective_checks.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "phalanx/base/error.h"
#include "phalanx/comm/reduce.h"

namespace phalanx {
namespace {

// Which tensor of a check.
enum Salt : uint64_t { kAllReduce = 1, kReduceScatter, kAllGather, kCounts, kRows, kBroadcast, kMessage };

template <class F>
void visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    case DType::i64:
      return f(int64_t{});
    case DType::i32:
      return f(int32_t{});
    case DType::i8:
      return f(int8_t{});
    case DType::u8:
      return f(uint8_t{});
    case DType::f8e4m3:
    case DType::f8e5m2:
      PHX_CHECK(false, "checks of {}", dtype_name(dtype));
  }
}

template <class T>
T from_double(double v) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
    return T::from(static_cast<float>(v));
  } else {
    return static_cast<T>(v);
  }
}

template <class T>
double to_double(T v) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
    return static_cast<double>(v.to_float());
  } else {
    return static_cast<double>(v);
  }
}

double reduced(const CollectiveCase& c, uint64_t salt, int ranks, int64_t i, Reduce reduce) {
  double v = input_value(c, salt, 0, i);
  for (int r = 1; r < ranks; ++r) {
    const double w = input_value(c, salt, r, i);
    v = reduce == Reduce::sum ? v + w : reduce == Reduce::max ? std::max(v, w) : std::min(v, w);
  }
  return v;
}

void expect(const Group& group, const char* what, const Tensor& got, const Shape& shape,
            const std::function<double(int64_t)>& wanted) {
  if (got.shape() != shape) throw Error("{}: shape {}, expected {}", what, got.shape(), shape);
  for (int64_t i = 0; i < got.numel(); ++i) {
    if (element(got, i) == wanted(i)) continue;
    throw Error("{} of {} {} elements on rank {} of {}: element {} is {}, expected {}", what, got.numel(),
                dtype_name(got.dtype()), group.rank(), group.size(), i, element(got, i), wanted(i));
  }
}

// Rows that `from` sends to `to`; a third of them none.
int64_t rows_between(const CollectiveCase& c, int from, int to) {
  const auto v = static_cast<int64_t>(input_value(c, kCounts, from, to)) + 8;  // 0 … 16
  return v % 3 == 0 ? 0 : c.n * v / 16;
}

}  // namespace

double input_value(const CollectiveCase& c, uint64_t salt, int rank, int64_t i) {
  uint64_t h = c.seed + salt * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(rank) * 0xd1342543de82ef95u +
               static_cast<uint64_t>(i) * 0xbf58476d1ce4e5b9u;
  h = (h ^ h >> 31) * 0x94d049bb133111ebu;
  h ^= h >> 29;
  const double v = static_cast<double>(h % 17) - 8;
  return c.dtype == DType::u8 ? v + 8 : v;
}

Tensor input_tensor(const CollectiveCase& c, uint64_t salt, int rank, const Shape& shape) {
  Tensor x = Tensor::empty(shape, c.dtype);
  visit_dtype(c.dtype, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < x.numel(); ++i) x.data<T>()[i] = from_double<T>(input_value(c, salt, rank, i));
  });
  return x;
}

double element(const Tensor& x, int64_t i) {
  double v = 0;
  visit_dtype(x.dtype(), [&](auto t) { v = to_double(x.data<decltype(t)>()[i]); });
  return v;
}

void check_all_reduce(Group& group, const CollectiveCase& c, Reduce reduce) {
  const Tensor x = input_tensor(c, kAllReduce, group.rank(), {c.n});
  const Tensor y = group.all_reduce(x, reduce).wait();
  if (y.raw() != x.raw()) throw Error("all_reduce is not in place");
  expect(group, "all_reduce", y, {c.n},
         [&](int64_t i) { return reduced(c, kAllReduce, group.size(), i, reduce); });
}

void check_reduce_scatter(Group& group, const CollectiveCase& c, Reduce reduce) {
  const Tensor x = input_tensor(c, kReduceScatter, group.rank(), {c.n * group.size(), 2});
  const Tensor y = group.reduce_scatter(x, reduce).wait();
  const int64_t skip = 2 * c.n * group.rank();
  expect(group, "reduce_scatter", y, {c.n, 2},
         [&](int64_t i) { return reduced(c, kReduceScatter, group.size(), skip + i, reduce); });
  expect(group, "reduce_scatter's input", x, x.shape(),
         [&](int64_t i) { return input_value(c, kReduceScatter, group.rank(), i); });
}

void check_all_gather(Group& group, const CollectiveCase& c) {
  const Tensor x = input_tensor(c, kAllGather, group.rank(), {c.n, 1, 2});
  const Tensor y = group.all_gather(x).wait();
  expect(group, "all_gather", y, {c.n * group.size(), 1, 2}, [&](int64_t i) {
    return input_value(c, kAllGather, static_cast<int>(i / (2 * c.n)), i % (2 * c.n));
  });
}

void check_all_to_all(Group& group, const CollectiveCase& c) {
  std::vector<int64_t> send;
  std::vector<int64_t> recv;
  int64_t sent = 0;
  int64_t received = 0;
  for (int r = 0; r < group.size(); ++r) {
    send.push_back(rows_between(c, group.rank(), r));
    recv.push_back(rows_between(c, r, group.rank()));
    sent += send.back();
    received += recv.back();
  }
  const Tensor x = input_tensor(c, kRows, group.rank(), {sent, 3});
  const Tensor y = group.all_to_all(x, send, recv).wait();
  std::vector<double> wanted;
  for (int from = 0; from < group.size(); ++from) {
    int64_t skip = 0;
    for (int to = 0; to < group.rank(); ++to) skip += rows_between(c, from, to);
    for (int64_t i = 0; i < 3 * recv[static_cast<size_t>(from)]; ++i) {
      wanted.push_back(input_value(c, kRows, from, 3 * skip + i));
    }
  }
  expect(group, "all_to_all", y, {received, 3}, [&](int64_t i) { return wanted[static_cast<size_t>(i)]; });
}

void check_broadcast(Group& group, const CollectiveCase& c) {
  for (int root = 0; root < group.size(); ++root) {
    const Tensor x = input_tensor(c, kBroadcast, group.rank(), {c.n});
    const Tensor y = group.broadcast(x, root).wait();
    if (y.raw() != x.raw()) throw Error("broadcast is not in place");
    expect(group, "broadcast", y, {c.n}, [&](int64_t i) { return input_value(c, kBroadcast, root, i); });
  }
}

void check_exchange(Group& group, const CollectiveCase& c) {
  const int ranks = group.size();
  if (ranks == 1) {
    group.exchange({}).wait();
    return;
  }
  const int next = (group.rank() + 1) % ranks;
  const int previous = (group.rank() + ranks - 1) % ranks;
  const auto message = [&](int from, int to, int k) {
    return input_tensor(c, kMessage + static_cast<uint64_t>(2 * to + k), from, {k == 0 ? c.n : c.n / 2 + 1});
  };
  PooledVector<P2P> batch;
  for (int k = 0; k < 2; ++k) {
    batch.push_back(send_to(next, message(group.rank(), next, k)));
    batch.push_back(send_to(previous, message(group.rank(), previous, k)));
  }
  // From one rank messages come in the order in which it sent them; of two ranks, each is both neighbours.
  std::vector<Tensor> wanted;
  for (const auto& [from, k] :
       ranks == 2
           ? std::array<std::pair<int, int>, 4>{{{next, 0}, {next, 0}, {next, 1}, {next, 1}}}
           : std::array<std::pair<int, int>, 4>{{{previous, 0}, {previous, 1}, {next, 0}, {next, 1}}}) {
    wanted.push_back(message(from, group.rank(), k));
  }
  std::vector<Tensor> got;
  for (size_t i = 0; i < wanted.size(); ++i) {
    got.push_back(Tensor::empty(wanted[i].shape(), c.dtype));
    batch.push_back(recv_from(i < wanted.size() / 2 ? previous : next, got.back()));
  }
  group.exchange(std::move(batch)).wait();
  for (size_t i = 0; i < wanted.size(); ++i) {
    expect(group, "exchange", got[i], wanted[i].shape(), [&](int64_t k) { return element(wanted[i], k); });
  }
}

void check_barrier(Group& group) {
  using Clock = std::chrono::steady_clock;  // one for all processes of a machine
  const int late = group.size() - 1;
  if (group.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const int64_t arrived = Clock::now().time_since_epoch().count();
  group.barrier().wait();
  const int64_t left = Clock::now().time_since_epoch().count();
  const Tensor x = Tensor::of(Shape{1}, std::span<const int64_t>(&arrived, 1));
  const Tensor all = group.all_gather(x).wait();
  for (int r = 0; r < group.size(); ++r) {
    if (all.data<int64_t>()[r] > left)
      throw Error("rank {} left the barrier before rank {} came", group.rank(), r);
  }
}

void check_share(Group& group, const CollectiveCase& c) {
  const int ranks = group.size();
  const int me = group.rank();
  const auto writer = [&](int owner, size_t i) {
    return static_cast<int>((31 * i + i / 64 + c.seed + static_cast<size_t>(owner)) %
                            static_cast<size_t>(ranks));
  };
  const auto value = [&](int owner, size_t i) {
    return static_cast<std::byte>(c.seed + 7 * i + i / 256 + 13 * static_cast<size_t>(owner));
  };
  const Tensor whole = Tensor::zeros({c.n + me + 2, 3}, c.dtype);
  const Tensor mine = whole.slice(1, c.n + me + 1);
  std::vector<Tensor> peers(static_cast<size_t>(ranks));
  group.share(mine, peers).wait();
  for (int r = 0; r < ranks; ++r) {
    const Tensor& peer = peers[static_cast<size_t>(r)];
    if (peer.shape() != Shape{c.n + r, 3} || peer.dtype() != c.dtype) {
      throw Error("share: rank {}'s tensor has shape {}", r, peer.shape());
    }
    for (size_t i = 0; i < peer.bytes(); ++i) {
      if (writer(r, i) == me) peer.raw()[i] = value(r, i);
    }
  }
  group.unshare(0, 0).wait();
  for (const Tensor& edge : {whole.slice(0, 1), whole.slice(c.n + me + 1, c.n + me + 2)}) {
    for (size_t i = 0; i < edge.bytes(); ++i) {
      if (edge.raw()[i] != std::byte{0}) throw Error("share: rank {}'s tensor was written past its end", me);
    }
  }
  for (int r = 0; r < ranks; ++r) {
    const Tensor& peer = peers[static_cast<size_t>(r)];
    for (size_t i = 0; i < peer.bytes(); ++i) {
      if (peer.raw()[i] == value(r, i)) continue;
      throw Error("share: rank {} reads {} at byte {} of rank {}, wanted {}", me,
                  static_cast<int>(peer.raw()[i]), i, r, static_cast<int>(value(r, i)));
    }
  }
  group.barrier().wait();
}

void check_collectives(Group& group, const CollectiveCase& c) {
  if (can_reduce(c.dtype)) {
    for (const Reduce reduce : {Reduce::sum, Reduce::max, Reduce::min}) {
      check_all_reduce(group, c, reduce);
      check_reduce_scatter(group, c, reduce);
    }
  }
  check_all_gather(group, c);
  check_all_to_all(group, c);
  check_broadcast(group, c);
  check_exchange(group, c);
  if (group.shares_memory()) check_share(group, {c.dtype, std::min<int64_t>(c.n, 10'000), c.seed});
  check_barrier(group);
}

}  // namespace phalanx
