#include "apps/options.h"

#include <CLI/CLI.hpp>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

// CUDA does not outlive a fork: each rank starts its own.
bool forks(const TrainConfig& config) {
  return config.parallel.transport == TransportKind::nccl && !launched_by();
}

}  // namespace

void ConfigOptions::add_to(CLI::App& command) {
  command.add_option("config", path, "TOML file (configs/ has examples)")->required();
  command.add_option("--set", set, "Override a key: --set train.steps=100 (repeatable)")
      ->allow_extra_args(false);
  command.add_option(
      "--ranks", ranks,
      "Ranks: threads or, with --set parallel.transport=process (of GPUs: nccl), processes; under mpirun its "
      "processes, or a multiple of them, as threads of each");
  command.add_option("--layout", layout, "Sizes of the axes: dp=4,ep=2");
  command.add_option("--schedule", schedule, "sequential or overlapped");
  command.add_option("--device", device, "cpu, or cuda: ranks compute on NVIDIA GPUs")
      ->check(CLI::IsMember({"cpu", "cuda"}));
}

TrainConfig ConfigOptions::load() const {
  std::vector<std::string> overrides;
  if (const std::optional<Launched> place = launched_by()) {
    overrides.push_back("parallel.ranks=" + std::to_string(place->ranks));
    overrides.push_back(std::string("parallel.transport=") + transport_name(place->transport));
  }
  overrides.insert(overrides.end(), set.begin(), set.end());
  if (ranks != 0) overrides.push_back("parallel.ranks=" + std::to_string(ranks));
  if (!layout.empty()) overrides.push_back("parallel.layout=" + layout);
  if (!schedule.empty()) overrides.push_back("train.schedule=" + schedule);
  if (!device.empty()) overrides.push_back("train.device=" + device);
  return load_train_config(path, overrides);
}

void start_device(const TrainConfig& config) {
  if (config.train.device == Device::Kind::cuda && !forks(config)) cuda_devices();
}

void refuse_launcher(const char* command) {
  if (!launched_by()) return;
  throw Error("phalanx {} starts its own ranks, as threads: run it without mpirun or torchrun", command);
}

}  // namespace phalanx
