#include "phalanx/train/resume.h"

#include "phalanx/base/error.h"
#include "phalanx/train/agree.h"
#include "phalanx/train/saved_checkpoint.h"

namespace phalanx {
namespace {

// This rank's share of a parameter, or of its moments, as boxes of the whole.
void add_share(std::vector<NamedTensor>& tensors, const ParameterStore& store, const Parameter& p,
               const std::string& name, const Tensor& share) {
  const FlatRange own = store.share_of(p);
  int64_t at = 0;
  for (const LocalSlice& box : boxes_of_range(p.slice(), own.begin, own.end)) {
    tensors.push_back({.name = name,
                       .local = share.slice(at, at + box.local.numel()),
                       .slice = box,
                       .written_here = store.writes_share_of(p)});
    at += box.local.numel();
  }
}

// All that lies here, and the states: to load them is to have them.
std::vector<NamedTensor> weights_of(ParameterStore& parameters) {
  std::vector<NamedTensor> tensors;
  for (const Parameter& p : parameters.all()) {
    if (parameters.keeps_shares()) {
      add_share(tensors, parameters, p, p.name(), parameters.own_value(p));
    } else {
      tensors.push_back(
          {.name = p.name(), .local = p.value(), .slice = p.slice(), .written_here = p.is_owner()});
    }
  }
  for (const State& s : parameters.states()) {
    tensors.push_back({.name = s.name,
                       .local = s.value,
                       .slice = whole_slice(s.value.shape()),
                       .written_here = s.written_here});
  }
  return tensors;
}

// Weights and the optimizer's moments.
std::vector<NamedTensor> tensors_of(RankRun& rank) {
  std::vector<NamedTensor> tensors = weights_of(rank.parameters());
  const Optimizer& optimizer = rank.optimizer();
  const auto add_moments = [&](const char* name, const Parameter& p, const Tensor& moments) {
    if (!moments.defined()) return;
    add_share(tensors, rank.parameters(), p, format("optimizer.{}.{}", name, p.name()), moments);
  };
  for (const Parameter& p : rank.parameters().all()) add_moments("m", p, optimizer.first_moments(p));
  for (const Parameter& p : rank.parameters().all()) add_moments("v", p, optimizer.second_moments(p));
  return tensors;
}

// Keys of [model] and [moe] under which the same weights may be trained on.
bool may_change(const std::string& key) {
  return key == "model.context" || key == "model.dropout" || key == "model.init_std" ||
         key == "model.mtp_weight" || key == "moe.balance_loss" || key == "moe.z_loss" ||
         key == "moe.bias_rate" || key == "moe.capacity" || key == "moe.exact_sums" || key == "moe.two_level";
}

// Error: the checkpoint's weights mean something else in this run.
void check_same_model(const SavedRun& saved, TrainConfig mine) {
  TrainConfig theirs = saved.config;
  const ConfigTable saved_table = train_table(theirs);
  const ConfigTable table = train_table(mine);
  for (const ConfigSection& section : table.sections()) {
    const bool counts =
        section.name() == "model" || (section.name() == "moe" && mine.model.mlp == MlpKind::moe);
    if (!counts) continue;
    for (const ConfigField& field : section.fields()) {
      const std::string was = saved_table.field(field.name()).text();
      if (was == field.text() || may_change(field.name())) continue;
      throw Error("{}: it is of another model: its {} is {}, this run's is {}", saved.path, field.name(), was,
                  field.text());
    }
  }
}

void check_same_run(const SavedRun& saved, const TrainConfig& mine, const Tokenizer& tokenizer) {
  check_same_model(saved, mine);
  if (saved.config.train.seed != mine.train.seed) {
    throw Error("{}: saved with train.seed {}, this run has {}: its text and dropout would differ",
                saved.path, saved.config.train.seed, mine.train.seed);
  }
  const bool have_moments = saved.config.optimizer.kind == OptimizerConfig::Kind::adamw &&
                            mine.optimizer.kind == OptimizerConfig::Kind::adamw;
  if (have_moments && saved.config.optimizer.moments != mine.optimizer.moments) {
    const auto name = [](const TrainConfig& c) {
      return c.optimizer.moments == OptimizerConfig::Moments::bf16 ? "bf16" : "same";
    };
    throw Error("{}: saved with optimizer.moments {}, this run has {}: set optimizer.moments={}", saved.path,
                name(saved.config), name(mine), name(saved.config));
  }
  using Master = OptimizerConfig::Master;
  if (saved.config.optimizer.master == Master::same && mine.optimizer.master == Master::none) {
    throw Error("{}: saved with optimizer.master same, this run has none: set optimizer.master=same",
                saved.path);
  }
  if (saved.tokenizer->json() != tokenizer.json()) {
    throw Error("{}: its vocabulary of {} tokens is not this run's of {}: its numbers mean other text",
                saved.path, saved.tokenizer->vocabulary(), tokenizer.vocabulary());
  }
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
  SavedReport report;
  rank.places().at_home(
      [&] { report = save_checkpoint(rank.config().train.out, contents, world, {.keep_last = keep}); });
  return report;
}

Resumed resume_run(RankRun& rank, const Tokenizer& tokenizer, const std::string& path, Group& world) {
  SavedRun saved;
  all_or_none(world, [&] {
    saved = open_run(path);
    check_same_run(saved, rank.config(), tokenizer);
  });
  const LoadedCheckpoint loaded = load_checkpoint(saved.path, tensors_of(rank), world);
  rank.parameters().narrow_kept();
  run(rank.model().data().publish_values());
  rank.optimizer().set_steps(loaded.state.get<int64_t>("optimizer.steps"));
  return {.next_step = loaded.state.get<int64_t>("train.next_step"), .path = saved.path, .note = saved.note};
}

SavedRun open_run(const std::string& path) {
  LatestCheckpoint found = resolve_checkpoint(path);
  try {
    const SavedCheckpoint saved(found.path);
    const Manifest& manifest = saved.manifest();
    const std::string manifest_path = (found.path / "manifest.json").string();
    return {.path = found.path.string(),
            .note = std::move(found.note),
            .config = parse_train_config(manifest.config, manifest_path, {}),
            .tokenizer = load_tokenizer(manifest.state.get<std::string>("tokenizer"), manifest_path)};
  } catch (const DamagedCheckpoint& e) {
    throw Error("{}; {}", e.what(), advice_instead_of(found.path));
  }
}

void load_weights(ParameterStore& parameters, const std::string& path, Group& world) {
  load_checkpoint(path, weights_of(parameters), world);
}

}  // namespace phalanx
