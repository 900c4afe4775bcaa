#include "phalanx/train/optimizer.h"

#include "phalanx/ops/optimizer.h"

namespace phalanx {

Optimizer::Optimizer(ParameterStore& store, const OptimizerConfig& config) : store_(store), config_(config) {
  if (config.kind == OptimizerConfig::Kind::sgd) return;
  int64_t n = 0;
  for (const FlatRange& share : store.shares()) n += share.size();
  m_ = Tensor::zeros({n}, store.dtype());
  v_ = Tensor::zeros({n}, store.dtype());
}

Tensor Optimizer::state_of(const Tensor& state, const Parameter& p) const {
  if (!state.defined()) return {};
  const FlatRange own = store_.share_of(p);
  if (own.size() == 0) return state.slice(0, 0);
  const int64_t first = p.flat_begin() + own.begin;
  int64_t at = 0;  // in the state, of the share that holds it
  for (const FlatRange& share : store_.shares()) {
    if (first >= share.begin && first < share.end) {
      return state.slice(at + first - share.begin, at + first - share.begin + own.size());
    }
    at += share.size();
  }
  PHX_CHECK(false, "{} lies in no share", p.name());
  return {};
}

void Optimizer::step(double lr, double gradient_scale) {
  ++steps_;
  for (Parameter& p : store_.all()) {
    const FlatRange own = store_.share_of(p);
    if (own.size() == 0) continue;
    const int64_t numel = p.slice().local.numel();
    const Tensor value = p.value().view({numel}).slice(own.begin, own.end);
    const Tensor grad = p.grad().view({numel}).slice(own.begin, own.end);
    if (config_.kind == OptimizerConfig::Kind::sgd) {
      sgd_into(value, grad, gradient_scale, lr);
      continue;
    }
    const AdamWStep step{.lr = lr,
                         .beta1 = config_.beta1,
                         .beta2 = config_.beta2,
                         .eps = config_.eps,
                         .weight_decay = p.spec().weight_decay ? config_.weight_decay : 0,
                         .step = steps_};
    adamw_into(value, first_moments(p), second_moments(p), grad, gradient_scale, step);
  }
}

}  // namespace phalanx
