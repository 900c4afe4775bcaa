// Where the time and the memory of a training step go, beside the least that they could be.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "phalanx/base/trace.h"
#include "phalanx/tensor/allocator.h"
#include "phalanx/tensor/device_trace.h"
#include "phalanx/train/data.h"
#include "phalanx/train/memory.h"
#include "phalanx/train/rank_run.h"

namespace phalanx {

/// One kind of work in one step of one rank, in seconds. The floor of products and attention is their
/// operations over the speed of a 2048×2048 matrix product; of all else their bytes over the speed of a copy
/// of as many, or of memory for communication; both measured on all ranks at once, the first again and again
/// between the steps.
struct StepPart {
  double floor = 0;
  double achieved = 0;
};

/// All calls of one op in one step.
struct OpPart : StepPart {
  std::string name;
  TraceKind kind = TraceKind::other;
  int calls = 0;
};

/// The median of the measured steps, as rank 0 saw it. Of a GPU there are no parts, and ops, without floors,
/// are those of one more step, as the GPU ran them: some beside each other.
struct StepProfile {
  Device device;
  double seconds = 0;  ///< drawing the batch and train_step
  /// By TraceKind; they sum to `seconds`. Communication is the time that the rank waits; `other`, which has
  /// no floor, is what no op accounts for.
  std::array<StepPart, kTraceKinds> parts{};
  std::vector<OpPart> ops;  ///< the same time by op, the longest first
  double tokens_per_s = 0;
  int64_t sent = 0;         ///< bytes, by this rank, in all its groups
  double operations = 0;    ///< of a step of all ranks: 6N + 12·L·H·d·T a token (model/flops.h)
  double matmul_flops = 0;  ///< of all ranks together, the median of those measured
  double copy_speed = 0;    ///< bytes a second of one rank, measured on memory
  MemoryAccount memory;     ///< what it should be
  MemoryStats measured;     ///< what it was on this rank

  double gemm_share() const { return operations / seconds / matmul_flops; }
};

struct ProfileOptions {
  int warmup = 3;
  int steps = 15;
  int64_t first_step = 0;                            ///< of the run, if its weights are a checkpoint's
  std::function<void(int done, int steps)> on_step;  ///< on rank 0; may be empty
};

/// Trains `rank` for some steps; every rank of `world` calls it. Learning rate and clipping are the config's.
StepProfile profile_steps(RankRun& rank, const Dataset& data, Group& world, const ProfileOptions& options);

}  // namespace phalanx
