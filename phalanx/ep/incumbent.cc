#include "phalanx/ep/incumbent.h"

#include <algorithm>

#include "phalanx/base/error.h"
#include "phalanx/ep/balance_bound.h"
#include "phalanx/ep/balance_loads.h"

namespace phalanx::ep {
namespace {

constexpr double kStop = 1.001;  // times the bound: no change is made below
constexpr double kGain = 0.999;  // a layer is placed afresh if its largest load comes below so much of itself

// How many slots of `a` have an expert that `b` has.
int64_t shared(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::ranges::count_if(a, [&](int32_t e) { return std::ranges::find(b, e) != b.end(); });
}

std::span<const int32_t> run_of(std::span<const int32_t> slots, size_t run, size_t size) {
  return slots.subspan(run * size, size);
}

// Runs of `size` slots (GPUs, or nodes) in the order that leaves most where it was: greedily, the pairs of a
// run before and a run now that share most first.
std::vector<int32_t> aligned(std::span<const int32_t> now, std::span<const int32_t> before, size_t size) {
  struct Pair {
    int64_t shared;
    size_t now;
    size_t before;
  };
  const size_t runs = now.size() / size;
  std::vector<Pair> pairs;
  for (size_t a = 0; a < runs; ++a) {
    for (size_t b = 0; b < runs; ++b) {
      pairs.push_back({shared(run_of(now, a, size), run_of(before, b, size)), a, b});
    }
  }
  std::ranges::stable_sort(pairs, std::greater(), &Pair::shared);
  std::vector<bool> placed(runs);
  std::vector<bool> taken(runs);
  std::vector<int32_t> out(now.size());
  for (const Pair& p : pairs) {
    if (placed[p.now] || taken[p.before]) continue;
    placed[p.now] = taken[p.before] = true;
    std::ranges::copy(run_of(now, p.now, size), out.begin() + static_cast<int64_t>(p.before * size));
  }
  return out;
}

// The experts of a GPU in the slots that they had; new ones in those that are free, in order.
void keep_slots(std::span<const int32_t> before, std::span<int32_t> now) {
  std::vector<int32_t> rest(now.begin(), now.end());
  std::ranges::fill(now, -1);
  for (size_t i = 0; i < now.size(); ++i) {
    const auto stays = std::ranges::find(rest, before[i]);
    if (stays == rest.end()) continue;
    now[i] = *stays;
    rest.erase(stays);
  }
  auto next = rest.begin();
  for (int32_t& slot : now) {
    if (slot < 0) slot = *next++;
  }
}

}  // namespace

int Migration::Layer::most_loaded() const {
  const auto load = [](const Node& n) { return n.packing.largest_load(); };
  return static_cast<int>(std::ranges::max_element(nodes, {}, load) - nodes.begin());
}

int64_t Migration::Layer::moves() const {
  int64_t sum = 0;
  for (const Node& n : nodes) sum += n.packing.moves();
  return sum;
}

Migration::Migration(std::span<const float> weight_LE, const BalanceSizes& sizes, const Incumbent& incumbent)
    : weight_LE_(weight_LE),
      sizes_(sizes),
      before_LR_(incumbent.phy2log),
      moves_left_(incumbent.max_moves),
      layers_(static_cast<size_t>(sizes.layers)) {
  if (moves_left_ < 0) throw Error("max_moves {}: 0 or more are expected", moves_left_);
  placement_of(sizes, {before_LR_.begin(), before_LR_.end()});  // checks it
  for (int64_t l = 0; l < sizes.layers; ++l) read_layer(l);
}

std::span<const int32_t> Migration::before_R(int64_t layer) const {
  return run_of(before_LR_, static_cast<size_t>(layer), static_cast<size_t>(sizes_.replicas));
}

void Migration::read_layer(int64_t l) {
  const auto nodes = static_cast<size_t>(sizes_.closed_nodes());
  const size_t replicas = static_cast<size_t>(sizes_.replicas) / nodes;
  const std::span<const float> weight_E = loads_of_layer(weight_LE_, sizes_, l);
  std::vector<int64_t> node_of_E(weight_E.size(), -1);
  Layer& layer = layers_[static_cast<size_t>(l)];
  layer.bound = layer_bound(weight_E, sizes_);
  layer.nodes.resize(nodes);
  for (size_t n = 0; n < nodes; ++n) {
    Node& node = layer.nodes[n];
    const std::span<const int32_t> slots = run_of(before_R(l), n, replicas);
    std::vector<int32_t>& experts = node.experts.expert;
    experts.assign(slots.begin(), slots.end());
    std::ranges::sort(experts);
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
    for (const int32_t e : experts) {
      int64_t& at = node_of_E[static_cast<size_t>(e)];
      if (at >= 0) {
        throw Error("layer {}: expert {} is on nodes {} and {}; with {} groups on {} nodes each stays on one",
                    l, e, at, n, sizes_.groups, sizes_.nodes);
      }
      at = static_cast<int64_t>(n);
      node.experts.load.push_back(weight_E[static_cast<size_t>(e)]);
    }
    for (const int32_t e : slots) {
      node.before.push_back(static_cast<int32_t>(std::ranges::lower_bound(experts, e) - experts.begin()));
    }
    node.packing.begin(node.experts.load, static_cast<int>(sizes_.gpus / sizes_.closed_nodes()),
                       static_cast<int>(sizes_.slots()));
    node.packing.adopt(node.before);
  }
}

void Migration::step_by_step() {
  struct Worst {
    double above;  // its bound
    int64_t layer;
  };
  const auto after = [](const Worst& a, const Worst& b) {
    return a.above != b.above ? a.above < b.above : a.layer > b.layer;
  };
  std::vector<Worst> heap;
  for (int64_t l = 0; l < sizes_.layers; ++l) {
    const Layer& layer = layers_[static_cast<size_t>(l)];
    heap.push_back({layer.largest_load() - kStop * layer.bound, l});
  }
  std::ranges::make_heap(heap, after);
  while (!heap.empty() && heap.front().above > 0 && moves_left_ > 0) {
    std::ranges::pop_heap(heap, after);
    Layer& layer = layers_[static_cast<size_t>(heap.back().layer)];
    Node& node = layer.nodes[static_cast<size_t>(layer.most_loaded())];
    const int64_t moves = node.packing.moves();
    node.packing.limit_moves(node.before, moves + std::min(moves_left_, sizes_.replicas));
    if (!node.packing.improve(kStop * layer.bound, 1)) {
      heap.pop_back();
      continue;
    }
    moves_left_ -= node.packing.moves() - moves;
    heap.back().above = layer.largest_load() - kStop * layer.bound;
    std::ranges::push_heap(heap, after);
  }
}

void Migration::place_afresh(LayerSolver& solver, const ReplicaPlacement& eplb) {
  const auto node = static_cast<size_t>(sizes_.replicas / sizes_.closed_nodes());
  const auto slots = static_cast<size_t>(sizes_.slots());
  std::vector<Gain> gains;
  for (int64_t l = 0; l < sizes_.layers; ++l) {
    const Layer& layer = layers_[static_cast<size_t>(l)];
    const double load = layer.largest_load();
    if (load * kGain <= layer.bound) continue;
    const auto found = solver.solve(loads_of_layer(weight_LE_, sizes_, l), eplb.slots_of_layer(l));
    if (solver.largest_load() > load * kGain) continue;
    Gain gain{.load = load - solver.largest_load(),
              .moves = -layer.moves(),
              .layer = l,
              .slots = aligned(found, before_R(l), node)};
    for (size_t at = 0; at < gain.slots.size(); at += node) {
      const auto part = std::span(gain.slots).subspan(at, node);
      std::ranges::copy(aligned(part, before_R(l).subspan(at, node), slots), part.begin());
    }
    for (size_t at = 0; at < gain.slots.size(); at += slots) {
      gain.moves += static_cast<int64_t>(slots) -
                    shared(std::span(gain.slots).subspan(at, slots), before_R(l).subspan(at, slots));
    }
    gains.push_back(std::move(gain));
  }
  std::ranges::stable_sort(gains, std::greater(), [](const Gain& g) {
    return g.load / static_cast<double>(std::max<int64_t>(g.moves, 1));
  });
  for (Gain& g : gains) {
    if (g.moves > moves_left_) continue;
    moves_left_ -= g.moves;
    layers_[static_cast<size_t>(g.layer)].afresh = std::move(g.slots);
  }
}

// With what stays on a GPU in its slot.
std::vector<int32_t> Migration::slots_of(int64_t l) const {
  const Layer& layer = layers_[static_cast<size_t>(l)];
  std::vector<int32_t> out = layer.afresh;
  if (out.empty()) {
    for (const Node& n : layer.nodes) {
      for (const int32_t e : n.packing.expert_R()) out.push_back(n.experts.expert[static_cast<size_t>(e)]);
    }
  }
  const auto slots = static_cast<size_t>(sizes_.slots());
  for (size_t at = 0; at < out.size(); at += slots) {
    keep_slots(before_R(l).subspan(at, slots), std::span(out).subspan(at, slots));
  }
  return out;
}

ReplicaPlacement Migration::run(LayerSolver& solver, const ReplicaPlacement& eplb) {
  step_by_step();
  if (moves_left_ > 0) place_afresh(solver, eplb);
  std::vector<int32_t> phy2log;
  for (int64_t l = 0; l < sizes_.layers; ++l) {
    const std::vector<int32_t> slots = slots_of(l);
    phy2log.insert(phy2log.end(), slots.begin(), slots.end());
  }
  return placement_of(sizes_, std::move(phy2log));
}

}  // namespace phalanx::ep
