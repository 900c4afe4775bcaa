#include "phalanx/train/optimizer.h"

#include <algorithm>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cast.h"
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
  const bool overlap = config_.overlap && config_.offload.empty();
  const std::shared_ptr<void> beside = overlap ? beside_.enter() : nullptr;
  for (Bucket* bucket : units_) {
    for (const Parameter* p : bucket->parameters) update(*p, lr, gradient_scale);
    bucket->mark_updated();
  }
}

namespace {

// The host's copy of a gradient, in the dtype of its arithmetic.
Tensor gradient_here(const Tensor& grad) {
  const Tensor here = grad.to(kCpu);
  if (here.dtype() != DType::bf16) return here;
  const Tensor wide = Tensor::empty(here.shape(), DType::f32);
  widen_into(wide, here);
  return wide;
}

}  // namespace

void Optimizer::update(const Parameter& p, double lr, double gradient_scale) const {
  const Tensor value = store_.own_value(p);
  if (value.numel() == 0) return;
  const AdamWTensors kept = {.w = value,
                             .m = first_moments(p),
                             .v = second_moments(p),
                             .g = store_.own_grad(p),
                             .narrow = store_.has_master() ? store_.own_kept(p) : Tensor()};
  if (config_.offload.empty() || !kept.g.on_cuda()) return update(p, kept, lr, gradient_scale);
  AdamWTensors here = kept;
  here.w = kept.w.to(kCpu);
  here.g = gradient_here(kept.g);
  update(p, here, lr, gradient_scale);
  if (kept.w.on_cuda()) copy_into(kept.w, here.w);
}

void Optimizer::update(const Parameter& p, const AdamWTensors& tensors, double lr,
                       double gradient_scale) const {
  if (config_.kind == OptimizerConfig::Kind::sgd) {
    sgd_into(tensors.w, tensors.g, gradient_scale, lr);
    if (tensors.narrow.defined()) narrow_into(tensors.narrow, tensors.w);
    return;
  }
  const AdamWStep step{.lr = lr,
                       .beta1 = config_.beta1,
                       .beta2 = config_.beta2,
                       .eps = config_.eps,
                       .weight_decay = p.spec().weight_decay ? config_.weight_decay : 0,
                       .step = steps_};
  if (tensors.w.dtype() == DType::bf16) return update_by_rounding(p, tensors, gradient_scale, step);
  adamw_into(tensors, gradient_scale, step);
}

namespace {

// Where the elements of a rank's part of a parameter stand in all of it. Rows that have moved are where they
// came from: copies of one are rounded alike.
std::vector<StridedRows> places_of(const Parameter& p, const FlatRange& own) {
  std::vector<StridedRows> places;
  for (const LocalSlice& box : boxes_of_range(p.slice(), own.begin, own.end)) {
    if (p.row_numbers().empty()) {
      std::ranges::copy(strided_rows(box), std::back_inserter(places));
      continue;
    }
    LocalSlice row = {.full = box.full, .local = box.local.with_rows(1), .begin = box.begin};
    const int64_t first = box.begin[0] - p.slice().begin[0];
    for (int64_t i = 0; i < box.local[0]; ++i) {
      row.begin[0] = p.row_numbers()[static_cast<size_t>(first + i)];
      std::ranges::copy(strided_rows(row), std::back_inserter(places));
    }
  }
  return places;
}

}  // namespace

void Optimizer::update_by_rounding(const Parameter& p, const AdamWTensors& all, double gradient_scale,
                                   const AdamWStep& step) const {
  StochasticRounding rounding = {.stream = RandomStream(config_.seed, "update." + p.name()),
                                 .step = static_cast<uint64_t>(steps_)};
  int64_t begin = 0;
  for (const StridedRows& rows : places_of(p, store_.share_of(p))) {
    const int64_t end = begin + rows.rows * rows.columns;
    rounding.first = rows.first;
    rounding.columns = rows.columns;
    rounding.row_step = rows.step;
    adamw_into(
        {all.w.slice(begin, end), all.m.slice(begin, end), all.v.slice(begin, end), all.g.slice(begin, end)},
        gradient_scale, step, rounding);
    begin = end;
  }
}

}  // namespace phalanx
