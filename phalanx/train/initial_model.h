// Starting a run from a model that Hugging Face's transformers saved.
#pragma once

#include "phalanx/train/train_config.h"

namespace phalanx {

/// The config with the model of DIR/config.json, DIR being train.init ("": as given). The run's own stay
/// model.context (where positions are no table), model.dropout, model.init_std, model.mtp (at most as many
/// depths as the directory has), model.mtp_weight, moe.balance_loss, moe.bias_rate, moe.z_loss and
/// moe.capacity. Error: as read_hf_config, and as checked.
TrainConfig with_initial_model(TrainConfig config);

}  // namespace phalanx
