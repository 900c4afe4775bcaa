#include "phalanx/train/optimizer.h"

#include "phalanx/ops/optimizer.h"

namespace phalanx {

Optimizer::Optimizer(ParameterStore& store, const OptimizerConfig& config) : store_(store), config_(config) {
  if (config.kind == OptimizerConfig::Kind::sgd) return;
  m_ = Tensor::zeros(store.values().shape(), store.dtype());
  v_ = Tensor::zeros(store.values().shape(), store.dtype());
}

void Optimizer::step(double lr, double gradient_scale) {
  ++steps_;
  for (const Parameter& p : store_.all()) {
    if (config_.kind == OptimizerConfig::Kind::sgd) {
      sgd_into(p.value(), p.grad(), gradient_scale, lr);
      continue;
    }
    const AdamWStep step{.lr = lr,
                         .beta1 = config_.beta1,
                         .beta2 = config_.beta2,
                         .eps = config_.eps,
                         .weight_decay = p.spec().weight_decay ? config_.weight_decay : 0,
                         .step = steps_};
    adamw_into(p.value(), ParameterStore::part_of(m_, p), ParameterStore::part_of(v_, p), p.grad(),
               gradient_scale, step);
  }
}

}  // namespace phalanx
