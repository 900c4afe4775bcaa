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

/// Where a run goes on.
struct Resumed {
  int64_t next_step = 0;
  std::string path;  // of the checkpoint
  std::string note;  // why it is not the latest of the directory that was named; "" if it is
};
/// Goes on from a checkpoint (or the latest of a directory), whatever layout saved it: bit for bit the same
/// run if the text is the same. Collective. Error: it is damaged, or of another model, vocabulary, seed or
/// optimizer.
Resumed resume_run(RankRun& rank, const Tokenizer& tokenizer, const std::string& path, Group& world);

/// What a checkpoint says of itself, without its tensors.
struct SavedRun {
  std::string path;  // of the checkpoint, when a directory of them was named
  std::string note;  // as Resumed::note
  TrainConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
};
/// Error: there is none, or it is damaged (says which other is complete).
SavedRun open_run(const std::string& path);

/// Fills the weights alone, to generate from. Collective.
void load_weights(ParameterStore& parameters, const std::string& path, Group& world);

}  // namespace phalanx
