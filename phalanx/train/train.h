// A training run: steps, evaluations, checkpoints.
#pragma once

#include <functional>
#include <string>

#include "phalanx/train/data.h"
#include "phalanx/train/history.h"
#include "phalanx/train/step_trace.h"
#include "phalanx/train/train_config.h"

namespace phalanx {

/// What a run tells while it goes, on rank 0. All may be empty.
struct TrainHooks {
  std::function<void(const StepRecord&)> on_step;
  std::function<void(const EvaluationRecord&)> on_evaluation;
  std::function<void(const std::string& note)> on_note;  ///< "saved out/step-00000400"
  std::function<bool()> stop;  ///< asked once a step: true saves and ends the run (Ctrl-C)
  TraceSteps trace;            ///< the same on all ranks
  /// The timeline of those steps (base/chrome_trace.h), after the last of them or when the run ends before.
  std::function<void(const std::string& json)> on_trace;
};

/// Trains as `config` says on the ranks of `world`; every rank calls it. `resume` names a checkpoint, or a
/// directory of checkpoints whose latest is taken; empty: from the start. Gives the history, whole on rank 0.
/// When hooks.stop ends it, it saves at once, without an evaluation. Error: sizes that do not fit, a
/// directory that cannot be written (before the first step), a checkpoint of another model, a loss that is
/// not finite (names the last checkpoint); steps to be traced that the run does not have.
TrainingHistory train(const TrainConfig& config, const Dataset& data, const std::string& resume, Group& world,
                      const TrainHooks& hooks);

}  // namespace phalanx
