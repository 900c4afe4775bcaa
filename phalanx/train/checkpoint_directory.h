// The directory of a run's checkpoints, DIR:
//   DIR/step-00000400/   manifest.json and one safetensors file for each rank that wrote something
//   DIR/latest           the name of the one to go on from, and a checksum of it
//   DIR/.writing-…       a checkpoint that is not complete, or never became so
//   DIR/.removing-…      one that is being removed
// A checkpoint gets its name when everything in it is on the disk; `latest` changes after that; older ones
// are removed last. So whenever the machine stops, the last complete checkpoint is there and is found.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

/// "step-00000400"
std::string checkpoint_name(int64_t step);

/// A checkpoint of a directory.
struct CheckpointEntry {
  std::filesystem::path path;
  int64_t step = 0;
  std::string
      fault;  // why it cannot be used, "" for a complete one (its manifest sound, its files there in full)
};
/// All of them, by step; of one step, the one that a newer save put aside first. An absent directory has
/// none.
std::vector<CheckpointEntry> list_checkpoints(const std::filesystem::path& dir);

/// Where to go on from.
struct LatestCheckpoint {
  std::filesystem::path path;
  std::string note;  // why it is not the one that `latest` names, else ""
};
/// The one that `latest` names, if it is complete; else the complete one with the highest step. Nothing when
/// none is complete.
std::optional<LatestCheckpoint> find_latest_complete(const std::filesystem::path& dir);

/// What can be used instead of `damaged`, for a message: "step-00000380 is complete: --resume
/// DIR/step-00000380", the nearest before it if there is one; or that there is none.
std::string advice_instead_of(const std::filesystem::path& damaged);

/// The one checkpoint that a path stands for: its own directory or its manifest.json, or DIR or DIR/latest,
/// whose find_latest_complete it then is. Its files have not been looked at in the first two cases. Error:
/// there is none; says what is wrong with those that are there.
LatestCheckpoint resolve_checkpoint(std::filesystem::path path);

/// Makes DIR if need be and tries whether a checkpoint could be begun in it, so that a run finds out before
/// its first step. Error: why not.
void prepare_directory(const std::filesystem::path& dir);

/// A checkpoint that is being written. One rank does this for all.
class CheckpointInProgress {
 public:
  CheckpointInProgress(std::filesystem::path dir, int64_t step);
  /// The directory to write into.
  const std::filesystem::path& path() const { return writing_; }
  /// Where it is going to be.
  std::filesystem::path final_path() const { return dir_ / name_; }

  /// Makes DIR if need be, removes what earlier saves left unfinished, and makes the directory.
  void begin() const;
  /// Writes the manifest and makes it the latest checkpoint. The other files must be on the disk. One of the
  /// same step is replaced: put aside as `step-….replaced`, then removed.
  void publish(std::string_view manifest) const;
  /// Removes what has been written; never throws.
  void discard() const noexcept;

 private:
  std::filesystem::path dir_;
  std::string name_;
  std::filesystem::path writing_;
};

/// Removes checkpoints before `step` until that one and those before it are `keep` complete ones; those of
/// later steps stay (they are of another course of the run). 0 keeps all. Gives what could not be removed, ""
/// if nothing.
std::string prune_checkpoints(const std::filesystem::path& dir, int64_t step, int keep);

}  // namespace phalanx
