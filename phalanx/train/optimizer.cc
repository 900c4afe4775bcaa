#include "phalanx/train/optimizer.h"

#include "phalanx/base/trace.h"
#include "phalanx/ops/cast.h"
#include "phalanx/ops/optimizer.h"
#include "phalanx/tensor/mapped.h"

namespace phalanx {

Optimizer::Optimizer(ParameterStore& store, const OptimizerConfig& config) : store_(store), config_(config) {
  if (config.kind == OptimizerConfig::Kind::sgd) return;
  for (Tensor* moments : {&m_, &v_}) {
    const Shape shape = {store.share_elements()};
    *moments = config.offload.empty() ? Tensor::zeros(shape, store.dtype(), store.device())
                                      : mapped_zeros(shape, store.dtype(), config.offload);
  }
}

void Optimizer::step(double lr, double gradient_scale) {
  const TracePart part("", "optimizer", TracePhase::update);
  ++steps_;
  for (const Parameter& p : store_.all()) {
    const Tensor value = store_.own_value(p);
    if (value.numel() == 0) continue;
    const Tensor grad = store_.own_grad(p);
    const Tensor narrow = store_.narrow() ? store_.own_kept(p) : Tensor();
    if (config_.kind == OptimizerConfig::Kind::sgd) {
      sgd_into(value, grad, gradient_scale, lr);
      if (narrow.defined()) narrow_into(narrow, value);
      continue;
    }
    const AdamWStep step{.lr = lr,
                         .beta1 = config_.beta1,
                         .beta2 = config_.beta2,
                         .eps = config_.eps,
                         .weight_decay = p.spec().weight_decay ? config_.weight_decay : 0,
                         .step = steps_};
    adamw_into({value, first_moments(p), second_moments(p), grad, narrow}, gradient_scale, step);
  }
}

}  // namespace phalanx
