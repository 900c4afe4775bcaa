#include "phalanx/train/optimizer.h"

#include <algorithm>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cast.h"
#include "phalanx/ops/optimizer.h"
#include "phalanx/tensor/mapped.h"

namespace phalanx {

Optimizer::Optimizer(ParameterStore& store, const OptimizerConfig& config)
    : store_(store), config_(config), beside_(store.device()) {
  for (const Parameter* p : store.added()) {
    Bucket* const bucket = &ParameterStore::bucket_of(*p);
    if (std::ranges::find(units_, bucket) == units_.end()) units_.push_back(bucket);
  }
  if (config.kind == OptimizerConfig::Kind::sgd) return;
  const Shape shape = {store.share_elements()};
  const DType dtype = config.moments == OptimizerConfig::Moments::bf16 ? DType::bf16 : store.dtype();
  for (Tensor* moments : {&m_, &v_}) {
    *moments = config.offload.empty() ? Tensor::zeros(shape, dtype, store.device())
                                      : mapped_zeros(shape, dtype, config.offload);
  }
}

// Their memory goes back to the rank's own stream.
Optimizer::~Optimizer() {
  try {
    for (Bucket* bucket : units_) bucket->settle();
  } catch (const DeviceError&) {  // the GPU has failed, and its memory is gone
  }
}

void Optimizer::step(double lr, double gradient_scale) {
  const TracePart part("", "optimizer", TracePhase::update);
  ++steps_;
  for (Bucket* bucket : units_) bucket->settle();
  const std::shared_ptr<void> beside = config_.overlap ? beside_.enter() : nullptr;
  for (Bucket* bucket : units_) {
    for (const Parameter* p : bucket->parameters) update(*p, lr, gradient_scale);
    bucket->mark_updated();
  }
}

void Optimizer::update(const Parameter& p, double lr, double gradient_scale) const {
  const Tensor value = store_.own_value(p);
  if (value.numel() == 0) return;
  const Tensor grad = store_.own_grad(p);
  const Tensor narrow = store_.narrow() ? store_.own_kept(p) : Tensor();
  if (config_.kind == OptimizerConfig::Kind::sgd) {
    sgd_into(value, grad, gradient_scale, lr);
    if (narrow.defined()) narrow_into(narrow, value);
    return;
  }
  const AdamWStep step{.lr = lr,
                       .beta1 = config_.beta1,
                       .beta2 = config_.beta2,
                       .eps = config_.eps,
                       .weight_decay = p.spec().weight_decay ? config_.weight_decay : 0,
                       .step = steps_};
  adamw_into({value, first_moments(p), second_moments(p), grad, narrow}, gradient_scale, step);
}

}  // namespace phalanx
