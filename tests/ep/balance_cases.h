// Sizes and loads to place, drawn afresh in every run.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "phalanx/ep/balance.h"

namespace phalanx::ep {

inline std::mt19937_64& test_random() {
  static std::mt19937_64 random{std::random_device{}()};
  return random;
}

inline int64_t random_between(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(test_random());
}

/// Whole numbers: even ones, with many ties, with zeros, or with a heavy tail.
inline std::vector<float> random_loads(int64_t n) {
  const int64_t kind = random_between(0, 4);
  std::normal_distribution<double> normal;
  std::vector<float> loads;
  for (int64_t i = 0; i < n; ++i) {
    double load = static_cast<double>(random_between(1, 1000));
    if (kind == 1) load = static_cast<double>(random_between(1, 4));
    if (kind == 2) load *= static_cast<double>(random_between(0, 1));
    if (kind == 3) load = std::floor(100 * std::exp(2 * normal(test_random())));
    if (kind == 4) load = std::floor(10'000 / static_cast<double>(i + 1));
    loads.push_back(static_cast<float>(load));
  }
  return loads;
}

/// Some layers, groups that nodes divide or do not, 1 to 9 slots a GPU.
struct RandomCase {
  BalanceSizes sizes;
  std::vector<float> weight;

  RandomCase() {
    sizes.layers = random_between(1, 3);
    sizes.nodes = random_between(1, 4);
    sizes.groups = sizes.nodes * random_between(1, 3);
    sizes.gpus = sizes.nodes * random_between(1, 5);
    const int64_t slots = random_between(1, 9);
    sizes.replicas = sizes.gpus * slots;
    sizes.experts = sizes.groups * random_between(1, std::max<int64_t>(1, sizes.replicas / sizes.groups));
    if (sizes.experts > sizes.replicas) sizes.replicas = sizes.gpus * ((sizes.experts - 1) / sizes.gpus + 1);
    if (random_between(0, 3) == 0) sizes.nodes = sizes.groups + 1;  // does not divide the groups: global
    for (int64_t l = 0; l < sizes.layers; ++l) {
      const std::vector<float> layer = random_loads(sizes.experts);
      weight.insert(weight.end(), layer.begin(), layer.end());
    }
  }

  std::string text() const {
    std::string s = std::to_string(sizes.experts) + " experts, " + std::to_string(sizes.replicas) +
                    " replicas, " + std::to_string(sizes.groups) + " groups, " + std::to_string(sizes.nodes) +
                    " nodes, " + std::to_string(sizes.gpus) + " GPUs, loads";
    for (const float w : weight) s += " " + std::to_string(static_cast<int>(w));
    return s;
  }
};

}  // namespace phalanx::ep
