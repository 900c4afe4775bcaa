#include "phalanx/train/resume.h"

#include <filesystem>

#include "phalanx/base/error.h"
#include "phalanx/train/saved_checkpoint.h"

namespace phalanx {
namespace {

std::vector<NamedTensor> weights_of(ParameterStore& parameters) {
  std::vector<NamedTensor> tensors;
  for (const Parameter& p : parameters.all()) {
    tensors.push_back({.name = p.name(),
                       .local = p.value(),
                       .slice = p.slice(),
                       .written_here = writes_replica(p.spec().placement, parameters.mesh())});
  }
  return tensors;
}

// Weights and the optimizer's moments.
std::vector<NamedTensor> tensors_of(RankRun& rank) {
  std::vector<NamedTensor> tensors = weights_of(rank.parameters());
  const auto add_moments = [&](const char* name, const Tensor& flat) {
    if (!flat.defined()) return;
    for (const Parameter& p : rank.parameters().all()) {
      tensors.push_back({.name = format("optimizer.{}.{}", name, p.name()),
                         .local = ParameterStore::part_of(flat, p),
                         .slice = p.slice(),
                         .written_here = writes_replica(p.spec().placement, rank.mesh())});
    }
  };
  add_moments("m", rank.optimizer().first_moments());
  add_moments("v", rank.optimizer().second_moments());
  return tensors;
}

}  // namespace

SavedReport save_run(RankRun& rank, const Tokenizer& tokenizer, int64_t steps_done, Group& world) {
  CheckpointContents contents = {.step = steps_done,
                                 .layout = rank.mesh().layout().text(),
                                 .config = to_toml(rank.config()),
                                 .tensors = tensors_of(rank)};
  contents.state.set("train.next_step", steps_done);
  contents.state.set("train.seed", rank.config().train.seed);
  contents.state.set("optimizer.steps", rank.optimizer().steps());
  contents.state.set("tokenizer", tokenizer.json());
  const int keep = static_cast<int>(rank.config().train.keep);
  return save_checkpoint(rank.config().train.out, contents, world, {.keep_last = keep});
}

int64_t resume_run(RankRun& rank, const std::string& path, Group& world) {
  const LoadedCheckpoint loaded = load_checkpoint(path, tensors_of(rank), world);
  const auto seed = loaded.state.get<uint64_t>("train.seed");
  if (seed != rank.config().train.seed) {
    throw Error("{}: saved with train.seed {}, this run has {}: its text and dropout would differ",
                loaded.path.string(), seed, rank.config().train.seed);
  }
  rank.optimizer().set_steps(loaded.state.get<int64_t>("optimizer.steps"));
  return loaded.state.get<int64_t>("train.next_step");
}

SavedRun open_run(const std::string& path) {
  std::filesystem::path checkpoint = path;
  if (!std::filesystem::exists(checkpoint / "manifest.json")) {
    const auto latest = find_latest_complete(path);
    if (!latest) throw Error("{}: no complete checkpoint is there", path);
    checkpoint = latest->path;
  }
  const SavedCheckpoint saved(checkpoint);
  const Manifest& manifest = saved.manifest();
  const std::string manifest_path = (checkpoint / "manifest.json").string();
  return {.path = checkpoint.string(),
          .config = parse_train_config(manifest.config, manifest_path, {}),
          .tokenizer = load_tokenizer(manifest.state.get<std::string>("tokenizer"), manifest_path)};
}

void load_weights(ParameterStore& parameters, const std::string& path, Group& world) {
  load_checkpoint(path, weights_of(parameters), world);
}

}  // namespace phalanx
