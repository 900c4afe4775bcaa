// One optimizer step: the training token's path.
#pragma once

#include <deque>
#include <span>

#include "phalanx/base/error.h"
#include "phalanx/model/transformer.h"
#include "phalanx/parallel/pipeline.h"
#include "phalanx/train/expert_places.h"
#include "phalanx/train/optimizer.h"

namespace phalanx {

/// What a rank trains with.
struct Trainer {
  Mesh& mesh;
  ParameterStore& parameters;
  Transformer& model;
  Optimizer& optimizer;
  Pipeline pipeline;  ///< over the microbatches of one step
  double clip = 0;    ///< largest gradient norm; 0: no limit
  Recomputation recompute = {};
  bool deterministic = true;  ///< Pass::deterministic
  int64_t loss_rows = 0;      ///< Pass::loss_rows
  RoutingWatch* watch = nullptr;
  ExpertPlaces* places = nullptr;           ///< null: experts stay where they are
  std::deque<Tape> tapes = {};              ///< by chunk, and in each by microbatch
  std::deque<SliceHistory> histories = {};  ///< by chunk, and in each by microbatch, where they are cut
  std::optional<Pipeline> forwards = {};    ///< of the last evaluation
};

/// Seconds of one step on this rank.
struct PhaseSeconds {
  double wait = 0;      ///< for what other stages send
  double forward = 0;   ///< F steps of the schedule
  double backward = 0;  ///< B, I and W steps
  double overlap = 0;   ///< FB steps
  double reduce = 0;    ///< summing gradients and scalars over ranks, and the gradient norm
  double update = 0;    ///< the optimizer
};

/// The loss or the gradient of a step is not finite.
class NotFinite : public Error {
 public:
  explicit NotFinite(const std::string& message) : Error("{}", message) {}
};

/// Equal on all ranks, but for the seconds.
struct StepResult {
  double loss = 0;  ///< mean over the targets that count, of all ranks and microbatches
  double balance_loss =
      0;  ///< mean over tokens, summed over MoE layers, without its coefficient; 1 a layer is even
  double grad_norm = 0;  ///< before clipping
  double targets = 0;    ///< that counted
  double z_loss = 0;     ///< as balance_loss
  double mtp_loss =
      0;  ///< of multi-token prediction (model/mtp.h): the mean over its depths, without its weight
  PhaseSeconds seconds;
};

/// Forward and backward of this rank's microbatches (or of their slices: model/slices.h) in the order of the
/// schedule, gradients summed over the ranks, clipped, and one update. `step` numbers the update, from 0.
/// NotFinite, on all ranks together and before any update; names the first bad tensor.
StepResult train_step(Trainer& trainer, std::span<const Batch> microbatches, double lr, uint64_t step);

/// The same without clipping and update: gradients stay in the parameters.
StepResult compute_gradients(Trainer& trainer, std::span<const Batch> microbatches, uint64_t step);

/// Mean loss over batches of this rank and all others of dp; nothing is kept or updated.
double evaluate(Trainer& trainer, std::span<const Batch> batches);

}  // namespace phalanx
