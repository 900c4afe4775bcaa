// Saving and resuming: every rank writes and reads its own part, in any layout.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "phalanx/comm/group.h"
#include "phalanx/comm/placement.h"
#include "phalanx/tensor/tensor.h"
#include "phalanx/train/checkpoint_directory.h"
#include "phalanx/train/trainer_state.h"

namespace phalanx {

/// A tensor under its name in checkpoints, and the part of it that this rank holds. A rank may list several
/// parts of one tensor.
struct NamedTensor {
  std::string name;  // "embedding", "optimizer.m.embedding"; equal on all ranks
  Tensor local;      // as many elements as the slice
  LocalSlice slice;
  bool written_here = true;  // by exactly one of the ranks that hold this part
};

struct CheckpointContents {
  int64_t step = 0;
  std::string layout;                // text of the Layout
  std::string config;                // TOML of the run
  TrainerState state;                // rank 0's is saved
  std::vector<NamedTensor> tensors;  // of this rank
};

struct SaveOptions {
  int keep_last = 0;  ///< complete checkpoints to keep, the new one included; 0: all
};

struct SavedReport {
  std::filesystem::path path;
  uint64_t bytes = 0;  ///< of this rank's file
  std::string note;    ///< on rank 0: old checkpoints that could not be removed; "" if there are none
};

/// Writes DIR/step-… and makes it the latest. When it returns, on every rank, the checkpoint is on the disk.
/// Streams from the tensors: no copy of them is made. Collective. Error, the same on every rank: what could
/// not be written, and which checkpoint is still there.
SavedReport save_checkpoint(const std::filesystem::path& dir, const CheckpointContents& contents,
                            Group& world, const SaveOptions& options = {});

struct LoadedCheckpoint {
  std::filesystem::path path;
  int64_t step = 0;
  std::string layout;
  std::string config;
  TrainerState state;
  std::string note;  ///< why it is not the one that DIR/latest names; "" if it is, or if it was named itself
};

/// Fills the given tensors (written_here does not matter) from a checkpoint, whatever layout saved it; `path`
/// is one checkpoint or the directory of a run's: then find_latest_complete says which. Every block that is
/// read is checked. Collective. Error, the same on every rank: none is there; a tensor is missing or has
/// another shape or dtype; damage: file, tensor, and which other checkpoint is complete. The tensors'
/// contents are then undefined.
LoadedCheckpoint load_checkpoint(const std::filesystem::path& path, std::span<const NamedTensor> wanted,
                                 Group& world);

}  // namespace phalanx
