#include "phalanx/parallel/parameter_store.h"

#include <algorithm>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/philox.h"
#include "phalanx/ops/cast.h"
#include "phalanx/parallel/holders.h"
#include "phalanx/tensor/mapped.h"

namespace phalanx {
namespace {

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

// The group of those members; null if this rank is the only one.
Group* group_of(Mesh& mesh, const std::string& name, const std::vector<int>& members) {
  return members.size() > 1 ? &mesh.group(name, members) : nullptr;
}

}  // namespace

Parameter& ParameterStore::add(ParameterSpec spec) {
  PHX_CHECK(!values_.defined(), "parameter {} comes after initialise", spec.name);
  const auto same = std::ranges::find(parameters_, spec.name, &Parameter::name);
  if (same != parameters_.end()) {
    PHX_CHECK(same->spec() == spec, "parameter {} is added twice, differently", spec.name);
    added_.push_back(&*same);
    return *same;
  }
  const LocalSlice slice = local_slice(spec.name, spec.shape, spec.placement, mesh_);
  Parameter& added = parameters_.emplace_back(std::move(spec), slice);
  added_.push_back(&added);
  return added;
}

Tensor ParameterStore::add_state(std::string name, const Shape& shape) {
  const DType dtype = dtype_ == DType::bf16 ? DType::f32 : dtype_;
  return states_.emplace_back(State{std::move(name), Tensor::zeros(shape, dtype, device())}).value;
}

// Who has which share of a bucket whose gradients `members` sum. Stages come to it at different times, so
// that each has a copy of its own; its members follow each other.
void ParameterStore::share_out(Bucket& bucket, const std::vector<int>& members,
                               const std::string& axes) const {
  const auto all = static_cast<int>(members.size());
  const auto me = static_cast<int>(std::ranges::find(members, mesh_.world().rank()) - members.begin());
  const auto here =
      static_cast<int>(std::ranges::count_if(members, [&](int rank) { return is_of_stage(rank); }));
  const int size = zero_.sharers(here);
  std::vector<int> sharers;
  std::vector<int> replicas;
  for (int i = 0; i < all; ++i) {
    if (i / size == me / size) sharers.push_back(members[static_cast<size_t>(i)]);
    if (i % size == me % size) replicas.push_back(members[static_cast<size_t>(i)]);
  }
  bucket.over_stages = here < all;
  bucket.sharers = group_of(mesh_, "shares over " + axes, sharers);
  bucket.replicas = group_of(mesh_, "gradients over " + axes, replicas);
}

Bucket& ParameterStore::bucket_for(const Parameter& parameter, const std::vector<int>& all) {
  constexpr Axis kDense[] = {Axis::pp, Axis::dp, Axis::cp, Axis::tp};
  constexpr Axis kExperts[] = {Axis::pp, Axis::edp, Axis::ep, Axis::etp};
  const ParameterSpec& spec = parameter.spec();
  std::vector<int> members = all;
  if (spec.gradient == OverTp::alike) {
    std::erase_if(members, [this](int rank) {
      return mesh_.coordinates_of(rank)[static_cast<size_t>(Axis::tp)] != mesh_.coordinate(Axis::tp);
    });
  }
  Bucket fresh = {.unit = unit_of(spec.name),
                  .alike = members.size() < all.size(),
                  .counts = members.front() == all.front(),
                  .dtype = gradient_dtype(),
                  .device = device()};
  const bool experts = is_of_experts(spec.placement);
  share_out(fresh, members, axes_of(mesh_, members, experts ? std::span(kExperts) : std::span(kDense)));
  const auto same = std::ranges::find_if(buckets_, [&](const Bucket& b) {
    return b.unit == fresh.unit && b.sharers == fresh.sharers && b.replicas == fresh.replicas &&
           b.alike == fresh.alike;
  });
  return same != buckets_.end() ? *same : buckets_.emplace_back(std::move(fresh));
}

// Where the next parameter or share may begin.
int64_t ParameterStore::aligned(int64_t elements) const {
  const int64_t step = device().is_cuda() ? Bucket::kGpuAlignment : 1;
  return (elements + step - 1) / step * step;
}

// Buckets, and the parameters of each, are in the order of names: stages that share some may have added them
// in another one.
void ParameterStore::fill_buckets() {
  std::vector<Parameter*> ordered;
  for (Parameter& p : parameters_) ordered.push_back(&p);
  std::ranges::sort(ordered, {}, &Parameter::name);
  std::vector<HeldTensor> held;
  for (const Parameter* p : ordered) held.push_back({p->name(), p->spec().shape, p->spec().placement});
  for (const State& s : states_) held.push_back({s.name, s.value.shape(), {}});
  const std::vector<std::vector<int>> all = holders_of(held, mesh_);
  find_state_holders(std::span(all).subspan(ordered.size()));
  for (size_t i = 0; i < ordered.size(); ++i) {
    Parameter& p = *ordered[i];
    p.owner_ = all[i].front() == mesh_.world().rank();
    p.bucket_ = &bucket_for(p, all[i]);
    p.at_ = aligned(p.bucket_->elements);
    p.bucket_->parameters.push_back(&p);
    p.bucket_->elements = p.at_ + p.slice().local.numel();
  }
}

// All of a rank's layers lie on the same ranks: of DualPipe those of two stages, else of one.
void ParameterStore::find_state_holders(std::span<const std::vector<int>> holders) {
  for (size_t i = 0; i < states_.size(); ++i) {
    PHX_CHECK(holders[i] == holders[0], "{} and {} lie on different ranks", states_[i].name, states_[0].name);
    states_[i].written_here = holders[i].front() == mesh_.world().rank();
  }
  if (!states_.empty()) state_holders_ = group_of(mesh_, "states", holders[0]);
}

void ParameterStore::initialise(uint64_t seed) {
  PHX_CHECK(dtype_ != DType::bf16 || (device().is_cuda() && !narrow()), "a store of bf16 on {}",
            device_name(device()));
  fill_buckets();
  int64_t elements = 0;
  for (Bucket& b : buckets_) {
    const int64_t ranks = b.sharers ? b.sharers->size() : 1;
    const int64_t share = aligned((b.elements + ranks - 1) / ranks);
    const int64_t begin = b.sharers ? b.sharers->rank() * share : 0;
    b.share = {begin, begin + share};
    b.elements = ranks * share;
    b.shares_before = share_elements_;
    b.begin = elements;
    share_elements_ += share;
    elements += b.elements;
  }
  const auto memory = [&](bool shares, DType dtype) {
    return Tensor::zeros({shares ? share_elements_ : elements}, dtype, device());
  };
  const bool in_file = has_master() && !weights_.master_in.empty();
  const bool wide = !narrow() || has_master();
  if (in_file) {
    values_ = mapped_zeros({share_elements_}, dtype_, weights_.master_in);
  } else if (wide) {
    values_ = memory(keeps_shares(), dtype_);
  }
  if (narrow()) narrow_values_ = memory(zero() == Zero::weights, DType::bf16);
  for (Bucket& b : buckets_) {
    if (!keeps_shares()) b.values = kept_values(b);
    b.bind();
  }
  for (const Parameter& p : parameters_) {
    if (wide) fill(p, seed);
    if (narrow()) fill_kept(p, seed);
  }
}

namespace {

constexpr int64_t kDrawn = 4096;                    // elements of one task
constexpr int64_t kDrawnForGpu = int64_t{1} << 22;  // of one copy

// The parameter's initial values from local element `first` on.
void draw_here(const Parameter& p, uint64_t seed, const Tensor& values, int64_t first) {
  const Init& init = p.spec().init;
  const RandomStream stream(seed, p.name());
  visit_float(values.dtype(), [&](auto t) {
    using T = decltype(t);
    T* const v = values.data<T>();
    parallel_for(values.numel(), kDrawn, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        switch (init.kind) {
          case Init::Kind::zeros:
            v[i] = 0;
            break;
          case Init::Kind::ones:
            v[i] = 1;
            break;
          case Init::Kind::normal:
            v[i] = static_cast<T>(init.std *
                                  stream.normal(static_cast<uint64_t>(p.slice().global_index(first + i))));
            break;
        }
      }
    });
  });
}

// The host draws, a piece at a time for a GPU: the same numbers wherever they lie.
void draw(const Parameter& p, uint64_t seed, const Tensor& values, int64_t first) {
  if (!values.on_cuda()) return draw_here(p, seed, values, first);
  for (int64_t begin = 0; begin < values.numel(); begin += kDrawnForGpu) {
    const int64_t end = std::min(values.numel(), begin + kDrawnForGpu);
    const bool rounds = values.dtype() == DType::bf16;
    const Tensor piece = Tensor::empty({end - begin}, rounds ? DType::f32 : values.dtype());
    draw_here(p, seed, piece, first + begin);
    if (rounds) {
      narrow_into(values.slice(begin, end), piece);
    } else {
      copy_into(values.slice(begin, end), piece);
    }
  }
}

}  // namespace

void ParameterStore::fill(const Parameter& p, uint64_t seed) const {
  if (keeps_shares()) {
    const Tensor own = own_value(p);
    draw(p, seed, own, share_of(p).begin);
  } else {
    draw(p, seed, p.value_.view({p.value_.numel()}), 0);
  }
}

void ParameterStore::fill_kept(const Parameter& p, uint64_t seed) const {
  const bool shares = zero() == Zero::weights;
  if (shares && has_master()) return narrow_kept(p);
  const FlatRange range = shares ? share_of(p) : FlatRange{0, p.slice().local.numel()};
  const int64_t begin = p.bucket_->begin + p.at_;
  const Tensor kept = shares ? own_kept(p) : narrow_values_.slice(begin, begin + range.size());
  const Tensor wide = Tensor::empty(kept.shape(), dtype_, device());
  draw(p, seed, wide, range.begin);
  narrow_into(kept, wide);
}

FlatRange ParameterStore::share_of(const Parameter& p) const {
  const FlatRange& share = p.bucket_->share;
  const int64_t numel = p.slice().local.numel();
  return {std::clamp<int64_t>(share.begin - p.at_, 0, numel),
          std::clamp<int64_t>(share.end - p.at_, 0, numel)};
}

bool ParameterStore::writes_share_of(const Parameter& p) const {
  return p.bucket_->counts && (!p.bucket_->replicas || p.bucket_->replicas->rank() == 0);
}

Tensor ParameterStore::share_in(const Tensor& flat, bool shares, const Bucket& b) {
  const int64_t begin = shares ? b.shares_before : b.begin + b.share.begin;
  return flat.slice(begin, begin + b.share.size());
}

Tensor ParameterStore::own_part_in(const Tensor& share, const Parameter& p) const {
  const FlatRange own = share_of(p);
  if (own.size() == 0) return share.slice(0, 0);
  const int64_t begin = p.at_ + own.begin - p.bucket_->share.begin;
  return share.slice(begin, begin + own.size());
}

Tensor ParameterStore::share_of_grads(const Bucket& b) const {
  const Tensor& grads = zero() >= Zero::gradients ? b.summed : b.grads;
  PHX_CHECK(grads.defined(), "{}: no gradients since the last update", b.unit);
  return zero() >= Zero::gradients ? grads : grads.slice(b.share.begin, b.share.end);
}

void ParameterStore::narrow_kept() const {
  if (!has_master()) return;
  for (const Bucket& b : buckets_) {
    PHX_CHECK(!b.updating, "{}: the optimizer is at it", b.unit);
    narrow_into(kept_share(b), share_in(values_, true, b));
  }
}

void ParameterStore::narrow_kept(const Parameter& p) const {
  if (has_master()) narrow_into(own_kept(p), own_value(p));
}

void ParameterStore::zero_grads() {
  for (Parameter& p : parameters_) p.grad_written_ = false;
  for (Bucket& b : buckets_) b.reduced = false;
}

}  // namespace phalanx
