#include "phalanx/ep/balance.h"

#include <algorithm>
#include <cmath>

#include "phalanx/base/check.h"
#include "phalanx/base/error.h"
#include "phalanx/ep/balance_bound.h"
#include "phalanx/ep/balance_loads.h"

namespace phalanx::ep {
namespace {

constexpr int64_t kMost = 65'536;
constexpr int64_t kMostLayers = 1'048'576;

void check_size(const char* name, int64_t value, int64_t most) {
  if (value < 1 || value > most) throw Error("{} {}: 1 to {} is expected", name, value, most);
}

void check_divides(const char* name, int64_t value, const char* of, int64_t n) {
  if (n % value != 0) throw Error("{} {} does not divide {} {}", name, value, of, n);
}

// The loads of a layer's GPUs into `load_D`.
void gpu_loads(std::span<const float> weight_E, const ReplicaPlacement& p, int64_t layer,
               std::vector<double>& load_D) {
  const std::span<const int32_t> slots = p.slots_of_layer(layer);
  const int32_t* const counts = p.logcnt.data() + layer * p.sizes.experts;
  load_D.assign(static_cast<size_t>(p.sizes.gpus), 0);
  for (int64_t i = 0; i < p.sizes.replicas; ++i) {
    const int32_t e = slots[static_cast<size_t>(i)];
    load_D[static_cast<size_t>(i / p.sizes.slots())] += double{weight_E[static_cast<size_t>(e)]} / counts[e];
  }
}

// Calls found(expert, is it the first on this GPU) for each slot, GPU by GPU.
template <class Found>
void visit_gpu(std::span<const int32_t> slots_S, Found found) {
  for (size_t i = 0; i < slots_S.size(); ++i) {
    const auto before = slots_S.first(i);
    found(slots_S[i], std::ranges::find(before, slots_S[i]) == before.end());
  }
}

}  // namespace

void check_sizes(const BalanceSizes& s) {
  check_size("layers", s.layers, kMostLayers);
  check_size("experts", s.experts, kMost);
  check_size("replicas", s.replicas, kMost);
  check_size("groups", s.groups, kMost);
  check_size("nodes", s.nodes, kMost);
  check_size("gpus", s.gpus, kMost);
  if (s.replicas < s.experts) {
    throw Error("replicas {}: at least {} are expected, one for each expert", s.replicas, s.experts);
  }
  check_divides("gpus", s.gpus, "replicas", s.replicas);
  if (s.groups % s.nodes != 0) return;
  check_divides("groups", s.groups, "experts", s.experts);
  check_divides("nodes", s.nodes, "gpus", s.gpus);
}

void check_loads(std::span<const float> weight_LE, const BalanceSizes& sizes) {
  check_sizes(sizes);
  if (std::ssize(weight_LE) != sizes.layers * sizes.experts) {
    throw Error("{} loads: {} are expected, of {} layers with {} experts", weight_LE.size(),
                sizes.layers * sizes.experts, sizes.layers, sizes.experts);
  }
  for (int64_t l = 0; l < sizes.layers; ++l) {
    const std::span<const float> layer = loads_of_layer(weight_LE, sizes, l);
    float sum = 0;
    for (size_t e = 0; e < layer.size(); ++e) {
      if (!(layer[e] >= 0) || !std::isfinite(layer[e])) {
        throw Error("layer {}: the load of expert {} is {}: a finite number from 0 on is expected", l, e,
                    layer[e]);
      }
      sum += layer[e];
    }
    if (!std::isfinite(sum)) throw Error("layer {}: the loads sum to more than float32 holds", l);
  }
}

ReplicaPlacement placement_of(const BalanceSizes& sizes, std::vector<int32_t> phy2log) {
  check_sizes(sizes);
  if (std::ssize(phy2log) != sizes.layers * sizes.replicas) {
    throw Error("{} slots: {} are expected, of {} layers with {} replicas", phy2log.size(),
                sizes.layers * sizes.replicas, sizes.layers, sizes.replicas);
  }
  ReplicaPlacement p{.sizes = sizes, .phy2log = std::move(phy2log)};
  p.logcnt.assign(static_cast<size_t>(sizes.layers * sizes.experts), 0);
  for (int64_t i = 0; i < std::ssize(p.phy2log); ++i) {
    const int32_t e = p.phy2log[static_cast<size_t>(i)];
    const int64_t layer = i / sizes.replicas;
    if (e < 0 || e >= sizes.experts) {
      throw Error("layer {}, slot {}: there is no expert {}, of {}", layer, i % sizes.replicas, e,
                  sizes.experts);
    }
    ++p.logcnt[static_cast<size_t>(layer * sizes.experts + e)];
  }
  const auto none = std::ranges::find(p.logcnt, 0);
  if (none != p.logcnt.end()) {
    const int64_t at = none - p.logcnt.begin();
    throw Error("layer {}: expert {} has no replica", at / sizes.experts, at % sizes.experts);
  }
  p.most_copies = std::ranges::max(p.logcnt);
  p.log2phy.assign(p.logcnt.size() * static_cast<size_t>(p.most_copies), -1);
  std::vector<int32_t> listed(p.logcnt.size(), 0);
  for (int64_t i = 0; i < std::ssize(p.phy2log); ++i) {
    const auto expert =
        static_cast<size_t>(i / sizes.replicas * sizes.experts + p.phy2log[static_cast<size_t>(i)]);
    p.log2phy[expert * static_cast<size_t>(p.most_copies) + static_cast<size_t>(listed[expert]++)] =
        static_cast<int32_t>(i % sizes.replicas);
  }
  return p;
}

std::vector<double> max_over_mean(std::span<const float> weight_LE, const ReplicaPlacement& placement) {
  check_loads(weight_LE, placement.sizes);
  std::vector<double> ratios;
  std::vector<double> load_D;
  for (int64_t l = 0; l < placement.sizes.layers; ++l) {
    const std::span<const float> weight_E = loads_of_layer(weight_LE, placement.sizes, l);
    gpu_loads(weight_E, placement, l, load_D);
    const double mean = sum_of(weight_E) / static_cast<double>(placement.sizes.gpus);
    ratios.push_back(mean > 0 ? std::max(1.0, std::ranges::max(load_D) / mean) : 1);  // but for rounding
  }
  return ratios;
}

std::vector<double> lower_bound(std::span<const float> weight_LE, const BalanceSizes& sizes) {
  check_loads(weight_LE, sizes);
  std::vector<double> bounds;
  for (int64_t l = 0; l < sizes.layers; ++l) {
    const std::span<const float> weight_E = loads_of_layer(weight_LE, sizes, l);
    const double mean = sum_of(weight_E) / static_cast<double>(sizes.gpus);
    bounds.push_back(mean > 0 ? std::max(1.0, layer_bound(weight_E, sizes) / mean * (1 - 1e-12)) : 1);
  }
  return bounds;
}

int64_t duplicates(const ReplicaPlacement& p) {
  const auto slots = static_cast<size_t>(p.sizes.slots());
  int64_t n = 0;
  for (size_t at = 0; at < p.phy2log.size(); at += slots) {
    visit_gpu(std::span(p.phy2log).subspan(at, slots), [&](int32_t, bool first) { n += !first; });
  }
  return n;
}

int64_t moved(std::span<const int32_t> phy2log, const ReplicaPlacement& p) {
  PHX_CHECK(phy2log.size() == p.phy2log.size(), "{} slots beside {}", phy2log.size(), p.phy2log.size());
  const auto slots = static_cast<size_t>(p.sizes.slots());
  int64_t n = 0;
  for (size_t at = 0; at < p.phy2log.size(); at += slots) {
    const auto before = phy2log.subspan(at, slots);
    visit_gpu(std::span(p.phy2log).subspan(at, slots),
              [&](int32_t e, bool first) { n += first && std::ranges::find(before, e) == before.end(); });
  }
  return n;
}

}  // namespace phalanx::ep
