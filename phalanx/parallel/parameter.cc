#include "phalanx/parallel/parameter.h"

#include <cmath>
#include <cstring>

#include "phalanx/base/philox.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/elementwise.h"

namespace phalanx {
namespace {

void fill(Tensor value, const Parameter& parameter, uint64_t seed) {
  const ParameterSpec& spec = parameter.spec();
  const RandomStream stream(seed, spec.name);
  visit_float(value.dtype(), [&](auto t) {
    using T = decltype(t);
    T* v = value.data<T>();
    for (int64_t i = 0; i < value.numel(); ++i) {
      switch (spec.init.kind) {
        case Init::Kind::zeros:
          v[i] = 0;
          break;
        case Init::Kind::ones:
          v[i] = 1;
          break;
        case Init::Kind::normal:
          v[i] = static_cast<T>(spec.init.std *
                                stream.normal(static_cast<uint64_t>(parameter.slice().global_index(i))));
          break;
      }
    }
  });
}

}  // namespace

Parameter& ParameterStore::add(ParameterSpec spec) {
  PHX_CHECK(!values_.defined(), "parameter {} comes after initialise", spec.name);
  const LocalSlice slice = local_slice(spec.name, spec.shape, spec.placement, mesh_);
  return parameters_.emplace_back(std::move(spec), slice);
}

void ParameterStore::initialise(uint64_t seed) {
  int64_t n = 0;
  for (const Parameter& p : parameters_) n += p.slice().local.numel();
  values_ = Tensor::empty({n}, dtype_);
  grads_ = Tensor::empty({n}, dtype_);
  int64_t at = 0;
  for (const bool experts : {false, true}) {
    if (experts) experts_begin_ = at;
    for (Parameter& p : parameters_) {
      if (is_expert_placement(p.spec().placement) != experts) continue;
      p.flat_begin_ = at;
      p.value_ = part_of(values_, p);
      p.grad_ = part_of(grads_, p);
      fill(p.value_, p, seed);
      at += p.slice().local.numel();
    }
  }
}

Tensor Parameter::grad() {
  if (!std::exchange(grad_written_, true) && grad_.bytes() > 0) {
    const TraceSpan span(TraceKind::optimizer, "zero_grad", grad_.bytes());
    std::memset(grad_.raw(), 0, grad_.bytes());
  }
  return grad_;
}

void ParameterStore::zero_grads() {
  for (Parameter& p : parameters_) p.grad_written_ = false;
}

const Tensor& ParameterStore::grads() {
  for (Parameter& p : parameters_) p.grad();
  return grads_;
}

Task<> ParameterStore::reduce_grads() {
  const Tensor all = grads();
  Work dense = mesh_.group(Axis::dp).all_reduce(all.slice(0, experts_begin_));
  Work experts = mesh_.group(Axis::edp).all_reduce(all.slice(experts_begin_, all.rows()));
  co_await dense;
  co_await experts;
}

Task<double> ParameterStore::grad_norm() {
  // Dense gradients are equal on all dp ranks, expert gradients differ between ep ranks.
  double squares = sum_of_squares(grads_.slice(experts_begin_, grads_.rows()));
  const Tensor sum = Tensor::of(Shape{1}, std::span<const double>(&squares, 1));
  Work over_experts = mesh_.group(Axis::ep).all_reduce(sum);
  co_await over_experts;
  co_return std::sqrt(sum.data<double>()[0] + sum_of_squares(grads_.slice(0, experts_begin_)));
}

}  // namespace phalanx
