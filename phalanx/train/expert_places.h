// Experts that change places between the ranks of ep while a model trains, so that no rank has much more to
// do than the others (ep/rebalancer.h). Weights and optimizer state move with them, and with moe.exact_sums
// no loss, gradient or weight changes by a bit.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "phalanx/base/function_ref.h"
#include "phalanx/ep/rebalancer.h"
#include "phalanx/model/transformer.h"
#include "phalanx/train/optimizer.h"
#include "phalanx/train/train_config.h"

namespace phalanx {

/// One rank's. All ranks of a stage call the same.
class ExpertPlaces {
 public:
  /// Nothing moves where parallel.rebalance_every is 0, or ep 1. The others outlive it.
  ExpertPlaces(ParameterStore& parameters, Transformer& model, Optimizer& optimizer,
               const ParallelConfig& config);

  /// After an update and before publish_values; i64 [L, E] as sum_step_tokens gives it. Decides every so
  /// often.
  void step(const Tensor& tokens_LE);
  /// Experts that came to another rank so far, on this stage.
  int64_t moved() const { return moved_; }

  /// Runs `body` while every expert is where the parameters' placement says: to save weights by name.
  void at_home(FunctionRef<void()> body);

 private:
  using Maps = std::vector<std::shared_ptr<const ep::ReplicaMap>>;  // of each layer

  Maps maps_of(const ep::ReplicaPlacement& placement) const;
  void place(const Maps& maps);
  void move(Experts& experts, const ep::ReplicaMap& from, const ep::ReplicaMap& to);

  ParameterStore& parameters_;
  Transformer& model_;
  Optimizer& optimizer_;
  std::optional<ep::Rebalancer> rebalancer_;  // none: nothing moves
  Maps home_;
  Maps maps_;  // where experts are
  int64_t moved_ = 0;
};

}  // namespace phalanx
