// A model's weights in one or several safetensors files.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/model/safetensors.h"

namespace phalanx {

/// The tensors of a .safetensors file, of a `*.safetensors.index.json` and the files it names, or of a
/// directory that holds model.safetensors or model.safetensors.index.json.
class SafetensorsModel {
 public:
  /// Reads every file's header. Error: as SafetensorsFile; an index that names a tensor or a file that is not
  /// there, or a file of another directory.
  static SafetensorsModel open(const std::filesystem::path& path);
  SafetensorsModel(SafetensorsModel&&) = default;
  SafetensorsModel& operator=(SafetensorsModel&&) = default;

  struct Entry {
    const SafetensorsFile* file;
    const StoredTensor* tensor;
  };
  /// The file or index that was opened.
  const std::filesystem::path& path() const { return path_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  /// By name. Of several files, the tensors that the index names.
  const std::map<std::string, Entry, std::less<>>& tensors() const { return tensors_; }
  /// Error when there is no tensor of that name.
  Entry at(std::string_view name) const;

 private:
  SafetensorsModel() = default;
  void read_index();

  std::filesystem::path path_;
  std::vector<SafetensorsFile> files_;  // entries refer into it
  std::map<std::string, Entry, std::less<>> tensors_;
};

}  // namespace phalanx
