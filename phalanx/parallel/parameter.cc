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

// "dp.tp": the axes along which the members differ from one another.
std::string axes_of(const Mesh& mesh, std::span<const int> members, std::span<const Axis> axes) {
  std::string text;
  for (const Axis axis : axes) {
    const auto a = static_cast<size_t>(axis);
    const bool differ = std::ranges::any_of(
        members, [&](int rank) { return mesh.coordinates_of(rank)[a] != mesh.coordinates()[a]; });
    if (differ) text += format("{}{}", text.empty() ? "" : ".", axis_name(axis));
  }
  return text.empty() ? "alone" : text;
}

bool is_of_experts(const Placement& placement) {
  return std::ranges::any_of(placement,
                             [](const Shard& s) { return s.axis == Axis::ep || s.axis == Axis::etp; });
}

}  // namespace

Parameter& ParameterStore::add(ParameterSpec spec) {
  PHX_CHECK(!values_.defined(), "parameter {} comes after initialise", spec.name);
  const LocalSlice slice = local_slice(spec.name, spec.shape, spec.placement, mesh_);
  return parameters_.emplace_back(std::move(spec), slice);
}

ParameterStore::GradSum& ParameterStore::sum_of(const Parameter& parameter) {
  constexpr Axis kDense[] = {Axis::dp, Axis::cp, Axis::tp};
  constexpr Axis kExperts[] = {Axis::edp, Axis::ep, Axis::etp};
  const ParameterSpec& spec = parameter.spec();
  std::vector<int> members = holders(spec.placement, mesh_);
  if (spec.gradient == OverTp::alike) {
    std::erase_if(members, [this](int rank) {
      return mesh_.coordinates_of(rank)[static_cast<size_t>(Axis::tp)] != mesh_.coordinate(Axis::tp);
    });
  }
  const bool experts = is_of_experts(spec.placement);
  const std::string axes = axes_of(mesh_, members, experts ? std::span(kExperts) : std::span(kDense));
  Group& group = mesh_.group("gradients over " + axes, members);
  const auto same = std::ranges::find(sums_, &group, &GradSum::group);
  return same != sums_.end() ? *same : sums_.emplace_back(GradSum{.group = &group});
}

void ParameterStore::initialise(uint64_t seed) {
  int64_t n = 0;
  std::vector<size_t> sum_index;
  for (Parameter& p : parameters_) {
    n += p.slice().local.numel();
    p.owner_ = holders(p.spec().placement, mesh_).front() == mesh_.world().rank();
    sum_index.push_back(static_cast<size_t>(&sum_of(p) - sums_.data()));
  }
  values_ = Tensor::empty({n}, dtype_);
  grads_ = Tensor::empty({n}, dtype_);
  int64_t at = 0;
  for (size_t s = 0; s < sums_.size(); ++s) {
    sums_[s].begin = at;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& p = parameters_[i];
      if (sum_index[i] != s) continue;
      p.flat_begin_ = at;
      p.value_ = part_of(values_, p);
      p.grad_ = part_of(grads_, p);
      fill(p.value_, p, seed);
      at += p.slice().local.numel();
    }
    sums_[s].end = at;
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
  PooledVector<Work> works;
  for (const GradSum& sum : sums_) {
    if (sum.group->size() > 1) works.push_back(sum.group->all_reduce(all.slice(sum.begin, sum.end)));
  }
  for (Work& work : works) co_await work;
}

Task<double> ParameterStore::grad_norm() {
  double squares = 0;
  for (const Parameter& p : parameters_) {
    if (p.is_owner()) squares += sum_of_squares(p.grad());
  }
  const Tensor sum = Tensor::of(Shape{1}, std::span<const double>(&squares, 1));
  Work over_world = mesh_.world().all_reduce(sum);
  co_await over_world;
  co_return std::sqrt(sum.data<double>()[0]);
}

}  // namespace phalanx
