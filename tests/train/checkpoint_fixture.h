#pragma once
// Checkpoints whose every byte follows from the step, so that whoever loads one can tell whether it is whole.

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "phalanx/comm/mesh.h"
#include "phalanx/train/checkpoint.h"

namespace phalanx::testing {

struct TensorSpec {
  std::string name;
  Shape shape;
  DType dtype;
  Placement placement;
};

/// Tensors of every dtype, replicated and cut along every axis, a scalar, an empty one, and one of `large`
/// rows of 4 KiB.
std::vector<TensorSpec> some_tensors(int64_t large = 3);

/// This rank's parts, filled as of `step`.
std::vector<NamedTensor> tensors_of(const std::vector<TensorSpec>& specs, int64_t step, const Mesh& mesh);
/// The first tensor that is not as of `step`; "" when all are.
std::string difference(const std::vector<NamedTensor>& tensors, int64_t step);

TrainerState state_of(int64_t step);

struct SaveCase {
  std::vector<TensorSpec> specs = some_tensors();
  Layout layout = {.dp = 2, .ep = 2};
  SaveOptions options = {.keep_last = 2};
};
/// Saves on thread ranks; throws what save_checkpoint throws.
std::filesystem::path save_step(const std::filesystem::path& dir, int64_t step, const SaveCase& c = {});

struct Loaded {
  int64_t step = 0;
  std::filesystem::path path;
  std::string note;
  std::string difference;  // of any rank, in tensors or state; "" when all is as saved
};
/// Loads on thread ranks; throws what load_checkpoint throws.
Loaded load_step(const std::filesystem::path& path, const SaveCase& c = {});

/// Runs `body` in a process of its own, which may be killed. The body's text, or why it did not end by
/// itself: "signal 9", "exit 1", its exception.
std::string in_child(const std::function<std::string()>& body);

/// The names in a directory, sorted.
std::vector<std::string> names_in(const std::filesystem::path& dir);

}  // namespace phalanx::testing
