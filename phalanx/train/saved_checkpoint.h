// One checkpoint on the disk, read back and checked.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "phalanx/base/error.h"
#include "phalanx/model/safetensors.h"
#include "phalanx/train/manifest.h"

namespace phalanx {

/// A checkpoint that cannot be used as it lies there: something is missing, cut off or changed, or of a
/// format that this program does not read. Names the file and, where it can, the tensor.
class DamagedCheckpoint : public Error {
 public:
  explicit DamagedCheckpoint(const std::string& message) : Error("{}", message) {}
};

/// DIR/step-…/manifest.json and the safetensors files that it lists. Used by one thread.
class SavedCheckpoint {
 public:
  /// Reads the manifest. Error: DamagedCheckpoint.
  explicit SavedCheckpoint(std::filesystem::path directory);

  const std::filesystem::path& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }
  /// Error (DamagedCheckpoint) unless every file is there in its full size.
  void check_files() const;

  /// Reads the part of a tensor that `box` names into `into`, and checks every block that it reads; what was
  /// saved in bf16, into f32, too. Error: no such tensor, another dtype or shape; DamagedCheckpoint.
  void read(std::string_view name, const Shape& full, const Box& box, Tensor into);
  /// Reads all of one piece and checks it. Error: DamagedCheckpoint.
  void verify(std::string_view name, const SavedPiece& piece);

 private:
  BlockReader open_piece(std::string_view name, const SavedTensor& tensor, const SavedPiece& piece);
  const SafetensorsFile& open_file(const std::string& name);

  std::filesystem::path path_;
  Manifest manifest_;
  std::map<std::string, SafetensorsFile> files_;  // headers of those read so far
};

}  // namespace phalanx
