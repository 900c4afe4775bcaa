// How long dispatch and combine take on this machine, and how many bytes they must move.
#pragma once

#include <functional>
#include <optional>
#include <span>
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
  /// f8e4m3: dispatch of such rows with their f32 scales (ops/quantize.h), combine of bf16 rows that travel
  /// so; low latency quantises bf16 rows itself, and combines them as they are.
  DType dtype = DType::bf16;
};

/// One operation, on all ranks together.
struct OperationTime {
  std::string operation;
  double seconds = 0;         ///< the median, from when all begin until the slowest has ended
  std::optional<double> p99;  ///< seconds; of the low-latency mode
  int64_t rows = 0;           ///< that travel, to the own rank too
  int64_t logical = 0;        ///< bytes of those rows
  int64_t memory = 0;         ///< bytes that must be read and written
  LinkBytes sent;             ///< from one rank to another, numbers included
  /// Of two microbatches that overlap, the share of their communication that took no time.
  std::optional<double> hidden;
};

struct TimesOptions {
  TimesShape shape;
  int runs = 15;
  int ranks_of_node = 0;                              ///< on two levels (two_level.h); 0: on one
  std::function<void(const OperationTime&)> on_time;  ///< on rank 0; may be empty
};

/// "dispatch", "cached dispatch" and "combine" on the ranks of `group`; every member calls it. Rows are
/// (token, rank) pairs; memory has each token's row once and each pair's once, and where combine quantises,
/// what it writes and what is read of that.
std::vector<OperationTime> measure_operations(Group& group, const TimesOptions& options);

/// The low-latency mode, no rank's `tokens` more than its maximum: "dispatch", "combine" (of rows in its
/// buffer), "copied combine", and of each ", send half", which has no bytes but `memory`. Rows are (token,
/// expert) pairs. Every member calls it.
std::vector<OperationTime> measure_low_latency(Group& group, const TimesShape& shape, int runs);

/// Of each operation the median seconds until all ranks have done it, which all begin together. The
/// operations take turns. Every member calls it.
std::vector<double> median_times(Group& group, int runs, std::span<const std::function<void()>> operations);

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
