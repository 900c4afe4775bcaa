#include "apps/options.h"

#include <CLI/CLI.hpp>

namespace phalanx {

void ConfigOptions::add_to(CLI::App& command) {
  command.add_option("config", path, "TOML file (configs/ has examples)")->required();
  command.add_option("--set", set, "Override a key: --set train.steps=100 (repeatable)")
      ->allow_extra_args(false);
  command.add_option("--ranks", ranks, "Ranks (threads, unless a launcher started processes)");
  command.add_option("--layout", layout, "Sizes of the axes: dp=4,ep=2");
  command.add_option("--schedule", schedule, "sequential or overlapped");
}

TrainConfig ConfigOptions::load() const {
  std::vector<std::string> overrides = set;
  if (ranks != 0) overrides.push_back("parallel.ranks=" + std::to_string(ranks));
  if (!layout.empty()) overrides.push_back("parallel.layout=" + layout);
  if (!schedule.empty()) overrides.push_back("train.schedule=" + schedule);
  return load_train_config(path, overrides);
}

}  // namespace phalanx
