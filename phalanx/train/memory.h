// How much memory one rank's training step takes, from the config alone.
#pragma once

#include <span>

#include "phalanx/train/train_config.h"

namespace phalanx {

/// Bytes of blocks of the rank's allocator at the moment of a step when they are most: when backward begins,
/// with all that forward has saved, or ends, with all gradients, or between. Every tensor is rounded up to
/// its block (tensor/size_class.h). With experts, tokens are taken to choose evenly, so that a real step
/// differs by a few percent. Threads' scratch memory is left out: some tens of KiB for each.
struct MemoryAccount {
  int64_t weights = 0;
  int64_t gradients = 0;    ///< of all units, at the end of backward
  int64_t to_come = 0;      ///< of them, of units that backward has not reached when most is held
  int64_t optimizer = 0;    ///< AdamW's two moments
  int64_t batch = 0;        ///< tokens, targets and positions of the step's microbatches
  int64_t activations = 0;  ///< saved for backward, of all microbatches, or slices, that are live
  int64_t working = 0;      ///< gradients of activations and other tensors of the layer that runs
  int64_t gradients_then() const { return gradients - to_come; }
  int64_t kept() const { return weights + gradients + optimizer; }
  int64_t total() const { return kept() - to_come + batch + activations + working; }
};
/// Of the ranks with that coordinate of pp. `config` is checked; `vocabulary` is the tokenizer's.
MemoryAccount memory_account(const TrainConfig& config, int64_t vocabulary, int pp_rank = 0);

/// Error: what such a rank keeps from step to step (weights, gradients, optimizer state) is alone more than
/// the `machine` bytes of its machine.
void check_memory(const MemoryAccount& account, uint64_t machine);

/// Error: a step of the ranks that share a GPU, whose coordinates of pp are given, does not fit into its
/// memory of so many bytes; says how much it needs, and with which microbatch or recomputation it fits.
void check_gpu_memory(const TrainConfig& config, int64_t vocabulary, std::span<const int> pp_ranks,
                      uint64_t bytes);

}  // namespace phalanx
