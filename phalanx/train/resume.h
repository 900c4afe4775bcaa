// What of a run goes into a checkpoint, and how a run or a model comes back out of it.
#pragma once

#include <memory>
#include <string>

#include "phalanx/model/tokenizer.h"
#include "phalanx/train/checkpoint.h"
#include "phalanx/train/rank_run.h"

namespace phalanx {

/// Saves weights, optimizer state, step, configuration and vocabulary into the run's directory; collective.
/// Gives the checkpoint's path and, on rank 0, a note about old ones that could not be removed.
SavedReport save_run(RankRun& rank, const Tokenizer& tokenizer, int64_t steps_done, Group& world);

/// Goes on from a checkpoint (or the latest of a directory), whatever layout saved it: bit for bit the same
/// run. Gives the step to do next. Collective. Error: it is damaged, or of another model or optimizer.
int64_t resume_run(RankRun& rank, const std::string& path, Group& world);

/// What a checkpoint says of itself, without its tensors.
struct SavedRun {
  std::string path;  // of the checkpoint, when a directory of them was named
  TrainConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
};
/// Error: there is none, or it is damaged.
SavedRun open_run(const std::string& path);

/// Fills the weights alone, to generate from. Collective.
void load_weights(ParameterStore& parameters, const std::string& path, Group& world);

}  // namespace phalanx
