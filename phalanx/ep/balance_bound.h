// Lower bounds on the largest load of a GPU, whoever places the replicas.
//
// For E experts of loads w and R replicas on D GPUs of S slots, T the largest load of a GPU, ρ that of a
// replica, all counts and all packings:
//   mean       T ≥ Σw / D, the mean of the GPUs.
//   replicas   T ≥ ρ ≥ least t with Σ⌈w/t⌉ ≤ R: an expert of load w needs ⌈w/t⌉ replicas of at most t.
//   companions T ≥ ρ + the S − 1 smallest replicas: they share a GPU with the largest. If ρ ≤ b, expert e has
//              k ≥ ⌈w/b⌉ replicas; z = R − Σ⌈w/b⌉ are left, so it has at most ⌈w/b⌉ + z, each of at least
//              w / (⌈w/b⌉ + z). That bounds the S − 1 smallest; the least over intervals of ρ holds for all.
//   nodes      where nodes hold whole groups: the node of the largest group holds G/N − 1 others, no lighter
//              than the lightest, on D/N GPUs.
#pragma once

#include <span>
#include <vector>

#include "phalanx/ep/balance.h"

namespace phalanx::ep {

/// The largest of mean, replicas and companions, for the experts of one node. Keeps its working memory.
class NodeBound {
 public:
  /// In the unit of the loads.
  double of(std::span<const double> load_E, int64_t gpus, int64_t slots);

 private:
  double largest_replica(std::span<const double> load_E, int64_t replicas);
  double with_companions(std::span<const double> load_E, int64_t replicas, int64_t slots, double least,
                         double mean);
  double companions(std::span<const double> load_E, int64_t replicas, int64_t slots, double most);

  struct Replica {
    double load;
    size_t expert;
  };
  std::vector<Replica> heap_;
  std::vector<int64_t> copies_;
  std::vector<Replica> smallest_;
};

/// For a layer as a whole, in the unit of the loads.
double layer_bound(std::span<const float> weight_E, const BalanceSizes& sizes);

}  // namespace phalanx::ep
