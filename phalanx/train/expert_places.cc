#include "phalanx/train/expert_places.h"

#include <numeric>

#include "phalanx/base/trace.h"
#include "phalanx/ep/move_slots.h"
#include "phalanx/ops/cast.h"
#include "phalanx/ops/elementwise.h"

namespace phalanx {
namespace {

// Every layer's experts in their order.
ep::ReplicaPlacement in_order(const Transformer& model, int ranks) {
  const ep::BalanceSizes sizes = {.layers = std::ssize(model.moe_layers()),
                                  .experts = model.config().moe.experts,
                                  .replicas = model.config().moe.experts,
                                  .gpus = ranks};
  std::vector<int32_t> phy2log(static_cast<size_t>(sizes.layers * sizes.experts));
  for (size_t i = 0; i < phy2log.size(); ++i) {
    phy2log[i] = static_cast<int32_t>(i % static_cast<size_t>(sizes.experts));
  }
  return ep::placement_of(sizes, std::move(phy2log));
}

ep::RebalanceOptions options_of(const ParallelConfig& c) {
  ep::RebalanceOptions options = {.every = c.rebalance_every,
                                  .window = c.rebalance_window > 0 ? c.rebalance_window : c.rebalance_every};
  if (c.rebalance_moves > 0) options.max_moves = c.rebalance_moves;
  return options;
}

}  // namespace

ExpertPlaces::ExpertPlaces(ParameterStore& parameters, Transformer& model, Optimizer& optimizer,
                           const ParallelConfig& config)
    : parameters_(parameters), model_(model), optimizer_(optimizer) {
  const int ranks = parameters.mesh().size(Axis::ep);
  if (config.rebalance_every == 0 || ranks == 1 || model.moe_layers().empty()) return;
  rebalancer_.emplace(options_of(config), in_order(model, ranks));
  home_ = maps_ = maps_of(rebalancer_->placement());
}

ExpertPlaces::Maps ExpertPlaces::maps_of(const ep::ReplicaPlacement& placement) const {
  const auto slots = ep::ExpertMap::even(placement.sizes.replicas, static_cast<int>(placement.sizes.gpus));
  Maps maps;
  for (int64_t l = 0; l < placement.sizes.layers; ++l) {
    maps.push_back(
        std::make_shared<const ep::ReplicaMap>(placement.slots_of_layer(l), slots, placement.sizes.experts));
  }
  return maps;
}

void ExpertPlaces::step(const Tensor& tokens_LE) {
  if (!rebalancer_ || !rebalancer_->step(tokens_LE.span<int64_t>())) return;
  const TracePart part("", "experts change places", TracePhase::gather);
  const Maps maps = maps_of(rebalancer_->placement());
  for (size_t l = 0; l < maps.size(); ++l) moved_ += ep::slots_moved(*maps_[l], *maps[l]);
  place(maps);
}

void ExpertPlaces::place(const Maps& maps) {
  const int me = parameters_.mesh().coordinate(Axis::ep);
  for (size_t l = 0; l < maps.size(); ++l) {
    if (*maps[l] == *maps_[l]) continue;
    Moe& layer = *model_.moe_layers()[l];
    move(layer.experts(), *maps_[l], *maps[l]);
    layer.set_places(maps[l]);
    const ep::ExpertMap& slots = maps[l]->slots();
    const auto own = maps[l]->phy2log().subspan(static_cast<size_t>(slots.first(me)),
                                                static_cast<size_t>(slots.count(me)));
    for (Parameter* p : layer.experts().parameters()) p->set_row_numbers(own);
  }
  maps_ = maps;
}

// Values, as the optimizer updates them, and its moments.
void ExpertPlaces::move(Experts& experts, const ep::ReplicaMap& from, const ep::ReplicaMap& to) {
  PooledVector<Tensor> own;
  for (const Parameter* p : experts.parameters()) {
    const int64_t rows = p->slice().local[0];
    for (const Tensor& flat :
         {parameters_.own_value(*p), optimizer_.first_moments(*p), optimizer_.second_moments(*p)}) {
      if (flat.defined()) own.push_back(flat.view({rows, flat.numel() / rows}));
    }
  }
  Group& ep = parameters_.mesh().group(Axis::ep);
  const PooledVector<Tensor> moved = run(ep::move_slots(ep, own, from, to));
  for (size_t i = 0; i < own.size(); ++i) copy_into(own[i], moved[i]);
  for (const Parameter* p : experts.parameters()) parameters_.narrow_kept(*p);
}

void ExpertPlaces::at_home(FunctionRef<void()> body) {
  const Maps away = maps_;
  place(home_);
  body();
  place(away);
}

}  // namespace phalanx
