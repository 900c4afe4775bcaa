#include "phalanx/parallel/parameter.h"

#include <algorithm>
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

Parameter& ParameterStore::add_shared(ParameterSpec spec) {
  const auto same = std::ranges::find(parameters_, spec.name, &Parameter::name);
  if (same == parameters_.end()) return add(std::move(spec));
  PHX_CHECK(same->spec().shape == spec.shape, "parameter {} of {} is shared as {}", spec.name,
            same->spec().shape, spec.shape);
  return *same;
}

Tensor ParameterStore::add_state(std::string name, const Shape& shape) {
  return states_.emplace_back(State{std::move(name), Tensor::zeros(shape, dtype_)}).value;
}

ParameterStore::GradSum& ParameterStore::sum_of(const Parameter& parameter, const std::vector<int>& all) {
  constexpr Axis kDense[] = {Axis::dp, Axis::cp, Axis::tp};
  constexpr Axis kExperts[] = {Axis::edp, Axis::ep, Axis::etp};
  const ParameterSpec& spec = parameter.spec();
  std::vector<int> members = all;
  if (spec.gradient == OverTp::alike) {
    std::erase_if(members, [this](int rank) {
      return mesh_.coordinates_of(rank)[static_cast<size_t>(Axis::tp)] != mesh_.coordinate(Axis::tp);
    });
  }
  const bool experts = is_of_experts(spec.placement);
  const std::string axes = axes_of(mesh_, members, experts ? std::span(kExperts) : std::span(kDense));
  Group& group = mesh_.group("gradients over " + axes, members);
  const bool counts = members.front() == all.front();
  const auto same = std::ranges::find_if(
      sums_, [&](const GradSum& sum) { return sum.group == &group && sum.counts == counts; });
  return same != sums_.end() ? *same : sums_.emplace_back(GradSum{.group = &group, .counts = counts});
}

// Gives a sum its run, which ends at `end` or, filled up to equal shares, behind it.
void ParameterStore::lay_out(GradSum& sum, int64_t begin, int64_t end) {
  const bool shared = zero_ != Zero::none;
  const int64_t ranks = shared ? sum.group->size() : 1;
  const int64_t share = (end - begin + ranks - 1) / ranks;
  const int64_t first = begin + (shared ? sum.group->rank() * share : 0);
  sum.run = {begin, begin + ranks * share};
  sum.share = {first, first + share};
  shares_.push_back(sum.share);
}

void ParameterStore::initialise(uint64_t seed) {
  std::vector<size_t> sum_index;
  for (Parameter& p : parameters_) {
    const std::vector<int> all = holders(p.spec().placement, mesh_);
    p.owner_ = all.front() == mesh_.world().rank();
    sum_index.push_back(static_cast<size_t>(&sum_of(p, all) - sums_.data()));
  }
  int64_t end = 0;
  for (size_t s = 0; s < sums_.size(); ++s) {
    const int64_t begin = end;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (sum_index[i] != s) continue;
      parameters_[i].flat_begin_ = end;
      end += parameters_[i].slice().local.numel();
    }
    lay_out(sums_[s], begin, end);
    end = sums_[s].run.end;
  }
  values_ = zero_ == Zero::none ? Tensor::empty({end}, dtype_) : Tensor::zeros({end}, dtype_);
  grads_ = zero_ == Zero::none ? Tensor::empty({end}, dtype_) : Tensor::zeros({end}, dtype_);
  for (Parameter& p : parameters_) {
    p.value_ = part_of(values_, p);
    p.grad_ = part_of(grads_, p);
    fill(p.value_, p, seed);
  }
}

const ParameterStore::GradSum* ParameterStore::run_of(const Parameter& p) const {
  const auto holds = [&](const GradSum& s) {
    return p.flat_begin() >= s.run.begin && p.flat_begin() < s.run.end;
  };
  const auto at = std::ranges::find_if(sums_, holds);
  return at != sums_.end() ? &*at : nullptr;
}

FlatRange ParameterStore::share_of(const Parameter& p) const {
  const GradSum* sum = run_of(p);
  if (!sum) return {};
  const int64_t numel = p.slice().local.numel();
  return {std::clamp<int64_t>(sum->share.begin - p.flat_begin(), 0, numel),
          std::clamp<int64_t>(sum->share.end - p.flat_begin(), 0, numel)};
}

bool ParameterStore::writes_share_of(const Parameter& p) const {
  if (zero_ == Zero::none) return p.is_owner();
  const GradSum* sum = run_of(p);
  return sum && sum->counts;
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
    const Tensor run = all.slice(sum.run.begin, sum.run.end);
    works.push_back(zero_ == Zero::none ? sum.group->all_reduce(run) : sum.group->reduce_scatter(run));
  }
  for (size_t s = 0; s < sums_.size(); ++s) {
    Work& work = works[s];
    const Tensor result = co_await work;
    if (zero_ != Zero::none) copy_into(all.slice(sums_[s].share.begin, sums_[s].share.end), result);
  }
}

Task<> ParameterStore::gather_values() {
  if (zero_ == Zero::none) co_return;
  PooledVector<Work> works;
  for (const GradSum& sum : sums_) {
    works.push_back(sum.group->all_gather(values_.slice(sum.share.begin, sum.share.end)));
  }
  for (size_t s = 0; s < sums_.size(); ++s) {
    Work& work = works[s];
    const Tensor result = co_await work;
    copy_into(values_.slice(sums_[s].run.begin, sums_[s].run.end), result);
  }
}

Task<double> ParameterStore::grad_norm() {
  double squares = 0;
  for (const GradSum& sum : sums_) {
    const bool mine = sum.counts && (zero_ != Zero::none || sum.group->rank() == 0);
    if (mine) squares += sum_of_squares(grads_.slice(sum.share.begin, sum.share.end));
  }
  const Tensor all = Tensor::of(Shape{1}, std::span<const double>(&squares, 1));
  Work over_world = mesh_.world().all_reduce(all);
  co_await over_world;
  co_return std::sqrt(all.data<double>()[0]);
}

}  // namespace phalanx
