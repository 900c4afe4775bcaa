// Options that several commands share.
#pragma once

#include <string>
#include <vector>

#include "phalanx/train/train_config.h"

namespace CLI {
class App;
}

namespace phalanx {

/// What a command line says about a training configuration.
struct ConfigOptions {
  std::string path;
  std::vector<std::string> set;  // section.key=value
  int ranks = 0;
  std::string layout;
  std::string schedule;
  std::string device;

  /// Adds CONFIG, --set, --ranks, --layout, --schedule and --device to a command.
  void add_to(CLI::App& command);
  /// The config with the options on top. Error: as load_train_config.
  TrainConfig load() const;
};

/// Before ranks are made: starts CUDA where they compute on GPUs of this process. Error: as cuda_initialise.
void start_device(const TrainConfig& config);

/// Error when a launcher has started this process, for commands whose ranks are always threads.
void refuse_launcher(const char* command);

}  // namespace phalanx
