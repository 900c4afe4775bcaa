#include "phalanx/model/safetensors_model.h"

#include <algorithm>

#include "phalanx/base/error.h"
#include "phalanx/model/strict_json-inl.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using strict_json::quote_name;

constexpr uint64_t kLongestIndex = 100'000'000;

fs::path file_of(const fs::path& path) {
  if (!fs::is_directory(path)) return path;
  for (const char* name : {"model.safetensors.index.json", "model.safetensors"}) {
    if (fs::exists(path / name)) return path / name;
  }
  throw Error("{}: neither model.safetensors nor model.safetensors.index.json is there", path.string());
}

}  // namespace

SafetensorsModel SafetensorsModel::open(const fs::path& path) {
  SafetensorsModel model;
  model.path_ = file_of(path);
  if (model.path_.extension() == ".json") {
    model.read_index();
    return model;
  }
  model.files_.emplace_back(model.path_);
  const SafetensorsFile& file = model.files_.front();
  for (const StoredTensor& tensor : file.tensors())
    model.tensors_.emplace(tensor.name, Entry{&file, &tensor});
  return model;
}

void SafetensorsModel::read_index() {
  const std::string where = path_.string();
  const strict_json::Json json = strict_json::parse(read_text(path_, kLongestIndex), where);
  const strict_json::Json& map =
      strict_json::as_object(strict_json::member(json, "weight_map", where), where + ": \"weight_map\"");

  std::map<std::string, std::vector<std::string>> names;  // by file
  for (const auto& [tensor, value] : map.items()) {
    const std::string& file =
        strict_json::as_text(value, format("{}: \"weight_map\": {}", where, quote_name(tensor)));
    if (file.empty() || file == "." || file == ".." || file.find_first_of("/\\") != std::string::npos) {
      throw Error("{}: tensor {} lies in {}: a file beside the index is expected", where, quote_name(tensor),
                  quote_name(file));
    }
    names[file].push_back(tensor);
  }
  files_.reserve(names.size());
  for (const auto& [name, tensors] : names) {
    const SafetensorsFile& file = files_.emplace_back(path_.parent_path() / name);
    for (const std::string& tensor : tensors) {
      const StoredTensor* found = file.find(tensor);
      if (!found) {
        throw Error("{}: tensor {} should be in {}, which does not have it", where, quote_name(tensor),
                    quote_name(name));
      }
      tensors_.emplace(tensor, Entry{&file, found});
    }
  }
}

SafetensorsModel::Entry SafetensorsModel::at(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw Error("{}: tensor {} is missing; there are {} tensors", path_.string(), quote_name(name),
                tensors_.size());
  }
  return found->second;
}

}  // namespace phalanx
