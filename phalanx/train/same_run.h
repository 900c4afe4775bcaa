// Ranks that were started by hand or by a launcher may have been told different things.
#pragma once

#include "phalanx/comm/group.h"
#include "phalanx/train/data.h"
#include "phalanx/train/train_config.h"

namespace phalanx {

/// Error, the same on every rank: one of them has another configuration than rank 0 (names the first key) or
/// another text. Collective.
void check_same_run(Group& world, const TrainConfig& config, const Dataset& data);

}  // namespace phalanx
