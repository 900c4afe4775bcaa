// How long dispatch and combine take on this machine, and how many bytes they must move.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "phalanx/ep/buffer.h"

namespace phalanx::ep {

/// Tokens of each rank, and what they choose: `top_k` different experts, all equally likely.
struct TimesShape {
  int64_t tokens = 4096;
  int64_t width = 7168;
  int64_t top_k = 8;
  int experts = 64;
  DType dtype = DType::bf16;
};

/// One operation, on all ranks together.
struct OperationTime {
  std::string operation;  ///< "dispatch", "cached dispatch" or "combine"
  double seconds = 0;     ///< the median, from when all begin until all have ended
  int64_t rows = 0;       ///< (token, rank) pairs
  int64_t logical = 0;    ///< bytes of those rows
  int64_t wire = 0;       ///< bytes that go from one rank to another, numbers included
  int64_t memory = 0;  ///< bytes that must be read and written: each token's row once, each pair's row once
};

struct TimesOptions {
  TimesShape shape;
  int runs = 15;
  std::function<void(const OperationTime&)> on_time;  ///< on rank 0; may be empty
};

/// On the ranks of `group`; every member calls it.
std::vector<OperationTime> measure_operations(Group& group, const TimesOptions& options);

/// One operation of the low-latency mode, or its sending half; of the slowest rank.
struct LatencyTime {
  std::string operation;  ///< "dispatch", "combine" (of rows in its buffer), "copied combine"; ", send half"
  double median = 0;      ///< seconds
  double p99 = 0;
  int64_t memory = 0;  ///< bytes that all ranks must read and write in it
};

/// The low-latency mode on the ranks of `group`, no rank's `tokens` more than its maximum; every member calls
/// it.
std::vector<LatencyTime> measure_low_latency(Group& group, const TimesShape& shape, int runs);

/// Of values in any order: the least that 99 % do not exceed.
double percentile_99(std::vector<double> values);

/// `tokens` rows of floats near 1, of random last bits.
Tensor random_rows(int64_t tokens, int64_t width, DType dtype, uint64_t seed);

/// Bytes a second, read and written, at which as many ranks as there are cores copy memory, all at once.
/// Every member calls it.
double measure_copies(Group& group);

/// `tokens` rows of `top_k` different experts of `experts`; another `seed`, other choices.
Tensor random_choices(int64_t tokens, int64_t top_k, int experts, uint64_t seed);

}  // namespace phalanx::ep
