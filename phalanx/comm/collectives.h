// Collectives written once over exchange, for any transport. R ranks, S bytes in the whole tensor. Every sum
// runs in rank order, so that all algorithms and transports give the same bits.
#pragma once

#include "phalanx/comm/transport/transport.h"

namespace phalanx::collectives {

/// Up to this many bytes an all_reduce sends whole tensors, in one step instead of two.
inline constexpr int64_t kSmallBytes = 2048;

/// Part `index` of n items cut into `parts` nearly equal ranges: [begin, end).
struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};
Range part_of(int64_t n, int parts, int index);

/// Steps of one operation, and the bytes that this rank sends and receives in it.
struct Cost {
  int steps = 0;
  int64_t sent = 0;
  int64_t received = 0;
  friend bool operator==(const Cost&, const Cost&) = default;
};
/// Of the algorithms below; not for all_to_all and exchange, whose callers know.
Cost cost(const Fingerprint& call, int ranks, int rank);

/// In place. Small: one step, each rank sends S to everyone. Else two: parts to the ranks that reduce them,
/// S·(R−1)/R, and back to all, S·(R−1)/R.
Task<> all_reduce(Call call, Tensor x, Reduce reduce);
/// One step; each rank sends S·(R−1)/R bytes. x [R·n, …] → out [n, …].
Task<> reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce);
/// One step; each rank sends its S/R bytes R−1 times. x [n, …] → out [R·n, …].
Task<> all_gather(Call call, Tensor x, Tensor out);
/// One step; rows cut as given: rank r gets the rows of `x` behind those for ranks 0…r−1.
Task<> all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                  PooledVector<int64_t> recv_rows);
/// Binomial tree: ⌈log2 R⌉ steps; every rank but the root receives S bytes. In place.
Task<> broadcast(Call call, Tensor x, int root);
/// Dissemination: ⌈log2 R⌉ steps of empty messages.
Task<> barrier(Call call);

}  // namespace phalanx::collectives
