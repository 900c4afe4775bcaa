// The optimizer: state beside the flat parameters, and one update.
#pragma once

#include <string>

#include "phalanx/parallel/parameter_store.h"

namespace phalanx {

struct OptimizerConfig {
  enum class Kind : uint8_t { adamw, sgd };
  Kind kind = Kind::adamw;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  ///< on parameters whose spec asks for it
  std::string offload = "";   ///< directory of files that hold the state; "": it is in memory
};

class Optimizer {
 public:
  /// State takes the store's dtype and the layout of its shares, one behind the other; after
  /// store.initialise. Error: `offload` cannot hold it (tensor/mapped.h).
  Optimizer(ParameterStore& store, const OptimizerConfig& config);
  /// Updates this rank's shares of the parameters from their gradients times `gradient_scale`.
  void step(double lr, double gradient_scale);

  /// Updates made so far; a resumed run sets it.
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  /// AdamW's moments of this rank's share of a parameter, [share_of(parameter).size()]; undefined for SGD.
  Tensor first_moments(const Parameter& p) const { return m_.defined() ? store_.own_part(m_, p) : m_; }
  Tensor second_moments(const Parameter& p) const { return v_.defined() ? store_.own_part(v_, p) : v_; }

 private:
  ParameterStore& store_;
  OptimizerConfig config_;
  int64_t steps_ = 0;
  Tensor m_;
  Tensor v_;
};

}  // namespace phalanx
