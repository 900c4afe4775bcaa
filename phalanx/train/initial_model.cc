#include "phalanx/train/initial_model.h"

#include <filesystem>

#include "phalanx/model/hf_config.h"

namespace phalanx {

TrainConfig with_initial_model(TrainConfig config) {
  if (config.train.init.empty()) return config;
  ModelConfig model = read_hf_config(std::filesystem::path(config.train.init) / "config.json");
  if (model.positions == Positions::rope) model.context = config.model.context;
  model.dropout = config.model.dropout;
  model.init_std = config.model.init_std;
  model.mtp = config.model.mtp;
  model.mtp_weight = config.model.mtp_weight;
  model.moe.balance_loss = config.model.moe.balance_loss;
  model.moe.bias_rate = config.model.moe.bias_rate;
  model.moe.z_loss = config.model.moe.z_loss;
  model.moe.capacity = config.model.moe.capacity;
  config.model = model;
  return checked(config);
}

}  // namespace phalanx
