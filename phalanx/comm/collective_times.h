// How long the collectives of a group take, by size.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "phalanx/comm/group.h"

namespace phalanx {

/// One operation on tensors of one size. S, the size, is of the whole tensor: what all_reduce and broadcast
/// are given, what a rank gives to reduce_scatter and all_to_all and gets from all_gather.
struct CollectiveTime {
  std::string operation;
  int64_t bytes = 0;   ///< S; 0 for barrier
  double seconds = 0;  ///< the median of a call, all ranks starting together
  /// Bytes a second, S ÷ seconds; 0 for barrier.
  double algorithm_bandwidth() const { return seconds > 0 ? static_cast<double>(bytes) / seconds : 0; }
  /// Bytes a second that each rank's link carries each way, at least: of S, all_reduce moves 2·(R−1)/R over
  /// it, broadcast 1, the others (R−1)/R; 0 for barrier. Comparable between operations and numbers of ranks.
  double bus_bandwidth(int ranks) const;
  /// Bytes that all ranks together must at least read and write, whoever does it: R inputs and R outputs,
  /// less what stays where it is.
  int64_t memory_traffic(int ranks) const;
};

struct CollectiveTimesOptions {
  std::vector<int64_t> sizes;  ///< in bytes; operations that cut the tensor round up to 8 for each rank
  int batches = 7;             ///< of calls; the median over batches counts
  Device device = kCpu;        ///< of this rank's tensors; a batch ends when its GPU has finished
  std::function<void(const CollectiveTime&)> on_time;  ///< on rank 0; may be empty
};

/// All operations at all sizes, f32, on the ranks of `group`; every member calls it. The times are rank 0's.
std::vector<CollectiveTime> measure_collectives(Group& group, const CollectiveTimesOptions& options);

/// Sizes 8 B … `most`, eight times as large each, and `most`.
std::vector<int64_t> collective_sizes(int64_t most = 64 << 20);

}  // namespace phalanx
