// Placement of experts: EPLB and the solver that decides replication and packing together, on 58 layers
// (DeepSeek-V3's MoE layers), on one core.
//
// The limit is the lower bound of phalanx/ep/balance_bound.h, gap = max ÷ bound − 1: 0 % cannot be improved.
// Loads are whole numbers, as counts of tokens are; each row is over kTables tables of 58 layers, ms the
// median of one table.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "bench/report.h"
#include "phalanx/base/median.h"
#include "phalanx/base/philox.h"
#include "phalanx/base/text.h"
#include "phalanx/ep/balance.h"

namespace phalanx::bench {
namespace {

constexpr int64_t kLayers = 58;
constexpr uint64_t kTables = 5;
constexpr int kRounds = 3;

// The load of an expert, 1 on average; `rank` is its place, from 0, in a random order.
struct Distribution {
  const char* name;
  double (*load)(const RandomStream&, uint64_t index, double rank);
};

constexpr std::array<Distribution, 5> kDistributions = {{
    {"uniform", [](const RandomStream& r, uint64_t i, double) { return r.uniform(i); }},
    {"lognormal 1", [](const RandomStream& r, uint64_t i, double) { return std::exp(r.normal(i)); }},
    {"lognormal 2", [](const RandomStream& r, uint64_t i, double) { return std::exp(2 * r.normal(i)); }},
    {"Zipf 1", [](const RandomStream&, uint64_t, double rank) { return 1 / (rank + 1); }},
    {"Zipf 1.2", [](const RandomStream&, uint64_t, double rank) { return std::pow(rank + 1, -1.2); }},
}};

std::vector<float> loads_of(const Distribution& d, const ep::BalanceSizes& s, uint64_t seed) {
  const RandomStream random(seed, d.name);
  const RandomStream order(seed, "order");
  std::vector<float> loads;
  for (int64_t l = 0; l < s.layers; ++l) {
    const auto first = static_cast<uint64_t>(l * s.experts);
    std::vector<uint64_t> rank(static_cast<size_t>(s.experts));
    std::iota(rank.begin(), rank.end(), uint64_t{0});
    std::ranges::sort(rank, {}, [&](uint64_t e) { return order.uniform(first + e); });
    for (uint64_t e = 0; e < rank.size(); ++e) {
      loads.push_back(
          static_cast<float>(std::round(1e5 * d.load(random, first + e, static_cast<double>(rank[e])))));
    }
  }
  return loads;
}

using Solver = ep::ReplicaPlacement (*)(std::span<const float>, const ep::BalanceSizes&);

nlohmann::ordered_json measured(const ep::BalanceSizes& s, const Distribution& d, Solver solve) {
  std::vector<double> ms;
  double worst = 0;
  double bound = 0;
  double gap = 0;
  double gaps = 0;
  int64_t duplicates = 0;
  for (uint64_t seed = 0; seed < kTables; ++seed) {
    const std::vector<float> loads = loads_of(d, s, seed);
    ep::ReplicaPlacement placement;
    for (int round = 0; round < kRounds; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      placement = solve(loads, s);
      ms.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    }
    const std::vector<double> reached = ep::max_over_mean(loads, placement);
    const std::vector<double> least = ep::lower_bound(loads, s);
    duplicates += ep::duplicates(placement);
    for (size_t l = 0; l < reached.size(); ++l) {
      worst = std::max(worst, reached[l]);
      bound = std::max(bound, least[l]);
      gap = std::max(gap, reached[l] / least[l] - 1);
      gaps += (reached[l] / least[l] - 1) / static_cast<double>(kTables * kLayers);
    }
  }
  return {{"ms", median(ms)},
          {"max ÷ mean", format("{:.4f}", worst)},
          {"bound", format("{:.4f}", bound)},
          {"gap %, worst", format("{:.2f}", 100 * gap)},
          {"mean", format("{:.2f}", 100 * gaps)},
          {"duplicates", duplicates}};
}

int compare(int argc, char** argv) {
  Report report("placement of experts, 58 layers");
  const std::vector<ep::BalanceSizes> cases = {
      {.layers = kLayers, .experts = 256, .replicas = 288, .gpus = 32},
      {.layers = kLayers, .experts = 384, .replicas = 448, .gpus = 64},
      {.layers = kLayers, .experts = 256, .replicas = 320, .gpus = 64},
      {.layers = kLayers, .experts = 256, .replicas = 288, .gpus = 144},
      {.layers = kLayers, .experts = 256, .replicas = 288, .groups = 8, .nodes = 4, .gpus = 32},
  };
  const auto best = [](std::span<const float> loads, const ep::BalanceSizes& s) {
    return ep::balance_experts(loads, s);
  };
  for (const ep::BalanceSizes& s : cases) {
    for (const Distribution& d : kDistributions) {
      for (const bool eplb : {true, false}) {
        nlohmann::ordered_json row = {{"experts", s.experts}, {"replicas", s.replicas},
                                      {"GPUs", s.gpus},       {"nodes", s.nodes},
                                      {"loads", d.name},      {"policy", eplb ? "eplb" : "best"}};
        row.update(measured(s, d, eplb ? Solver(ep::rebalance_experts) : Solver(best)));
        report.add(std::move(row));
      }
    }
  }
  return report.finish(std::span(argv, static_cast<size_t>(argc)));
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) { return phalanx::bench::compare(argc, argv); }
