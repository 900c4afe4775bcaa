#include "phalanx/comm/transport/direct.h"

#include <algorithm>
#include <cstring>

#include "phalanx/comm/reduce.h"
#include "phalanx/comm/transport/direct_board.h"

namespace phalanx::direct {
namespace {

void count(const Call& call) {
  const collectives::Cost c = collectives::cost(call.fingerprint(), call.size(), call.rank());
  call.count(c.sent, c.received);
}

// n bytes in chunks of whole cache lines: about two for each rank, within bounds.
struct Cut {
  Cut(int64_t n, int ranks) : bytes(n) {
    const int64_t two_each = (n / (2 * ranks) + 63) / 64 * 64;
    chunk = std::clamp<int64_t>(two_each, 4096, kChunkBytes);
    count = (n + chunk - 1) / chunk;
  }
  collectives::Range range(int64_t i) const { return {i * chunk, std::min(bytes, (i + 1) * chunk)}; }

  int64_t bytes;
  int64_t chunk;
  int64_t count;
};

void copy(std::byte* to, const std::byte* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// Reduces the published tensors of all ranks at byte `from` into x.
void reduce_to(const Turn& turn, const Tensor& x, int64_t from, Reduce reduce) {
  std::byte* const to = x.raw();
  reduce_parts(x.dtype(), reduce, turn.inputs(from), std::span(&to, 1), x.numel());
}

// The rows that ranks of an all_to_all send each other, as published.
class RowCounts {
 public:
  explicit RowCounts(const Turn& turn) : turn_(turn) {}
  int64_t from_to(int from, int to) const { return turn_.cell(from).counts[to]; }
  int64_t expected(int from, int to) const { return turn_.cell(to).counts[turn_.ranks() + from]; }

  /// CommError unless every rank sends what the other expects.
  void check() const {
    for (int from = 0; from < turn_.ranks(); ++from) {
      for (int to = 0; to < turn_.ranks(); ++to) {
        if (from_to(from, to) == expected(from, to)) continue;
        throw CommError(format("calls differ: rank {} sends {} rows to rank {}, which expects {}",
                               turn_.link().world_rank(from), from_to(from, to), turn_.link().world_rank(to),
                               expected(from, to)));
      }
    }
  }
  /// Copies the rows that go from one rank to another; `out` is the receiver's memory.
  void copy_rows(int from, int to, std::byte* out, int64_t row_bytes) const {
    int64_t skip_in = 0;
    int64_t skip_out = 0;
    for (int r = 0; r < to; ++r) skip_in += from_to(from, r);
    for (int r = 0; r < from; ++r) skip_out += from_to(r, to);
    copy(out + skip_out * row_bytes, turn_.cell(from).in + skip_in * row_bytes,
         from_to(from, to) * row_bytes);
  }

 private:
  const Turn& turn_;
};

bool all_staged(const Turn& turn) {
  for (int r = 0; r < turn.ranks(); ++r) {
    if (!turn.staged(r)) return false;
  }
  return true;
}

}  // namespace

Task<> all_reduce(Call call, Tensor x, Reduce reduce) {
  const Turn turn(call);
  count(call);
  Free free(turn);
  if (!free.poll()) co_await Suspend(free);
  const auto bytes = static_cast<int64_t>(x.bytes());
  const bool small = bytes <= collectives::kSmallBytes;
  if (small) {
    turn.publish_copy(x.raw(), x.bytes());
  } else {
    turn.publish(x, x);
  }
  Arrivals arrivals(turn);
  co_await Suspend(arrivals);
  if (small) {
    reduce_to(turn, x, 0, reduce);
    turn.finish();
    co_return;
  }
  const Cut cut(bytes, turn.ranks());
  const auto item = static_cast<int64_t>(dtype_size(x.dtype()));
  Chunks chunks(turn, cut.count);
  chunks.work([&](int64_t i) {
    const collectives::Range r = cut.range(i);
    reduce_parts(x.dtype(), reduce, turn.inputs(r.begin), turn.outputs(r.begin), r.size() / item);
  });
  co_await Suspend(chunks);
  turn.finish();
}

Task<> reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce) {
  const Turn turn(call);
  count(call);
  Free free(turn);
  if (!free.poll()) co_await Suspend(free);
  const bool small = x.bytes() <= kStageBytes;
  if (small) {
    turn.publish_copy(x.raw(), x.bytes());
  } else {
    turn.publish(x, out);
  }
  Arrivals arrivals(turn);
  co_await Suspend(arrivals);
  const auto bytes = static_cast<int64_t>(out.bytes());
  if (small) {
    reduce_to(turn, out, bytes * call.rank(), reduce);
    turn.finish();
    co_return;
  }
  const Cut cut(bytes, 1);
  const auto item = static_cast<int64_t>(dtype_size(x.dtype()));
  Chunks chunks(turn, cut.count * turn.ranks());
  chunks.work([&](int64_t i) {
    const int64_t part = i / cut.count;
    const collectives::Range r = cut.range(i % cut.count);
    std::byte* const to = turn.cell(static_cast<int>(part)).out + r.begin;
    reduce_parts(x.dtype(), reduce, turn.inputs(part * bytes + r.begin), std::span(&to, 1), r.size() / item);
  });
  co_await Suspend(chunks);
  turn.finish();
}

Task<> all_gather(Call call, Tensor x, Tensor out) {
  const Turn turn(call);
  count(call);
  Free free(turn);
  if (!free.poll()) co_await Suspend(free);
  const bool small = x.bytes() <= kStageBytes;
  if (small) {
    turn.publish_copy(x.raw(), x.bytes());
  } else {
    turn.publish(x, out);
  }
  Arrivals arrivals(turn);
  co_await Suspend(arrivals);
  const auto bytes = static_cast<int64_t>(x.bytes());
  if (small) {
    for (int r = 0; r < turn.ranks(); ++r) copy(out.raw() + r * bytes, turn.cell(r).in, bytes);
    turn.finish();
    co_return;
  }
  const Cut cut(bytes, 1);
  Chunks chunks(turn, cut.count * turn.ranks());
  chunks.work([&](int64_t i) {
    const int64_t part = i / cut.count;
    const collectives::Range r = cut.range(i % cut.count);
    const std::byte* from = turn.cell(static_cast<int>(part)).in + r.begin;
    for (std::byte* to : turn.outputs(part * bytes + r.begin)) copy(to, from, r.size());
  });
  co_await Suspend(chunks);
  turn.finish();
}

Task<> all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                  PooledVector<int64_t> recv_rows) {
  const Turn turn(call);
  const int64_t row_bytes = x.row_size() * static_cast<int64_t>(dtype_size(x.dtype()));
  const auto me = static_cast<size_t>(call.rank());
  call.count((x.rows() - send_rows[me]) * row_bytes, (out.rows() - recv_rows[me]) * row_bytes);
  Free free(turn);
  if (!free.poll()) co_await Suspend(free);
  // In the parameter, which lives as long as the operation: what a rank holds then depends on its program,
  // not on how soon the others came.
  send_rows.insert(send_rows.end(), recv_rows.begin(), recv_rows.end());
  turn.publish_rows(send_rows, x, out);
  Arrivals arrivals(turn);
  co_await Suspend(arrivals);
  const RowCounts rows(turn);
  rows.check();
  if (all_staged(turn)) {
    for (int r = 0; r < turn.ranks(); ++r) rows.copy_rows(r, call.rank(), out.raw(), row_bytes);
    turn.finish();
    co_return;
  }
  const int ranks = turn.ranks();
  Chunks chunks(turn, int64_t{ranks} * ranks);
  chunks.work([&](int64_t i) {
    const auto to = static_cast<int>(i / ranks);
    rows.copy_rows(static_cast<int>(i % ranks), to, turn.cell(to).out, row_bytes);
  });
  co_await Suspend(chunks);
  turn.finish();
}

Task<> broadcast(Call call, Tensor x, int root) {
  const Turn turn(call);
  const auto bytes = static_cast<int64_t>(x.bytes());
  const bool is_root = call.rank() == root;
  call.count(is_root ? bytes * (call.size() - 1) : 0, is_root ? 0 : bytes);
  Free free(turn);
  if (!free.poll()) co_await Suspend(free);
  if (x.bytes() <= kStageBytes) {
    turn.publish_copy(x.raw(), is_root ? x.bytes() : 0);
    Arrivals arrivals(turn, is_root ? 0 : root,
                      is_root ? turn.ranks() : root + 1);  // the root checks all calls
    co_await Suspend(arrivals);
    if (!is_root) copy(x.raw(), turn.cell(root).in, bytes);
    turn.finish();
    co_return;
  }
  turn.publish(x, x);
  Arrivals arrivals(turn);
  co_await Suspend(arrivals);
  const Cut cut(bytes, turn.ranks());
  Chunks chunks(turn, cut.count);
  chunks.work([&](int64_t i) {
    const collectives::Range r = cut.range(i);
    const std::byte* from = turn.cell(root).in + r.begin;
    for (std::byte* to : turn.outputs(r.begin)) {
      if (to != from) copy(to, from, r.size());
    }
  });
  co_await Suspend(chunks);
  turn.finish();
}

Task<> barrier(Call call) {
  const Turn turn(call);
  Free free(turn);
  if (!free.poll()) co_await Suspend(free);
  turn.publish_copy(nullptr, 0);
  Arrivals arrivals(turn);
  co_await Suspend(arrivals);
  turn.finish();
}

Task<> share(Call call, Tensor x, std::span<Tensor> peers) {
  const Turn turn(call);
  Free free(turn);
  if (!free.poll()) co_await Suspend(free);
  turn.publish(x, x);
  Arrivals arrivals(turn);
  co_await Suspend(arrivals);
  Taken taken(turn);
  taken.take(peers);
  co_await Suspend(taken);
  turn.finish();
}

}  // namespace phalanx::direct
