// Everything that one rank of a run holds.
#pragma once

#include "phalanx/train/step.h"
#include "phalanx/train/train_config.h"

namespace phalanx {

/// The mesh, model, optimizer and trainer of one rank, built from a config that is checked(). Not movable:
/// its parts refer to each other.
class RankRun {
 public:
  /// Error: sizes that do not divide, or more parameters than the machine's memory holds.
  RankRun(const TrainConfig& config, int64_t vocabulary, Group& world);
  RankRun(const RankRun&) = delete;
  RankRun& operator=(const RankRun&) = delete;

  const TrainConfig& config() const { return config_; }
  Device device() const { return parameters_.device(); }
  Mesh& mesh() { return mesh_; }
  ParameterStore& parameters() { return parameters_; }
  Transformer& model() { return model_; }
  Optimizer& optimizer() { return optimizer_; }
  Trainer& trainer() { return trainer_; }
  ExpertPlaces& places() { return places_; }
  /// Which rows of each step this rank computes.
  const RowShare& share() const { return share_; }

 private:
  TrainConfig config_;
  Device device_;
  DeviceScope scope_;
  Mesh mesh_;
  RowShare share_;
  Schedule schedule_;
  ParameterStore parameters_;
  Transformer model_;
  Optimizer optimizer_;
  ExpertPlaces places_;
  Trainer trainer_;
};

}  // namespace phalanx
