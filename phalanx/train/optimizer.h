// The optimizer: state beside the flat parameters, and one update.
#pragma once

#include <string>

#include "phalanx/ops/optimizer.h"
#include "phalanx/parallel/parameter_store.h"
#include "phalanx/tensor/background.h"

namespace phalanx {

struct OptimizerConfig {
  enum class Kind : uint8_t { adamw, sgd };
  enum class Moments : uint8_t { same, bf16 };
  enum class Master : uint8_t { same, none };
  Kind kind = Kind::adamw;
  Moments moments = Moments::same;  ///< AdamW's: of the store's dtype, or rounded to bf16 after each update
  Master master = Master::same;     ///< copy of bf16 weights, of the store's dtype; none: AdamW rounds them
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  ///< on parameters whose spec asks for it
  bool overlap = true;        ///< on a GPU: beside the next forward
  std::string offload = "";   ///< directory of the host's files that hold the state; "": it is in memory
  uint64_t seed = 0;          ///< of stochastic rounding
};

class Optimizer {
 public:
  /// State takes the store's dtype, or what `moments` says, and the layout of its shares, one behind the
  /// other; after store.initialise. Error: `offload` cannot hold it (tensor/mapped.h).
  Optimizer(ParameterStore& store, const OptimizerConfig& config);
  /// Updates this rank's shares of the parameters from their gradients times `gradient_scale`.
  /// On a GPU that is queued beside the rank's own work, in the order in which units run: forward waits for
  /// each unit's alone (Bucket::settle), and so does who asks the store for a value. Where `offload` has the
  /// state the host updates copies of a GPU's gradients, and waits for them.
  void step(double lr, double gradient_scale);
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// Updates made so far; a resumed run sets it.
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  /// AdamW's moments of this rank's share of a parameter, [share_of(parameter).size()]; undefined for SGD.
  Tensor first_moments(const Parameter& p) const { return moments(m_, p); }
  Tensor second_moments(const Parameter& p) const { return moments(v_, p); }

 private:
  Tensor moments(const Tensor& all, const Parameter& p) const {
    ParameterStore::bucket_of(p).settle();
    return all.defined() ? store_.own_part(all, p) : all;
  }
  void update(const Parameter& p, double lr, double gradient_scale) const;
  void update(const Parameter& p, const AdamWTensors& tensors, double lr, double gradient_scale) const;
  void update_by_rounding(const Parameter& p, const AdamWTensors& all, double gradient_scale,
                          const AdamWStep& step) const;

  ParameterStore& store_;
  OptimizerConfig config_;
  int64_t steps_ = 0;
  std::vector<Bucket*> units_;  // in the order in which forward comes to them
  Background beside_;
  Tensor m_;
  Tensor v_;
};

}  // namespace phalanx
