// Placement of experts: how many replicas each expert has, and on which GPU each lies. DeepSeek's EPLB
// (github.com/deepseek-ai/EPLB; DeepSeek-V3, 2024, section 3.4) and a solver that decides replication and
// packing together. Knows nothing of tensors or groups.
//
// L layers, E (logical) experts, R replicas (physical experts), D GPUs of S = R / D slots each. Slot p is on
// GPU p / S. The load of an expert is shared evenly by its replicas; that of a GPU is the sum of its slots'.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace phalanx::ep {

/// What is to be placed on what.
struct BalanceSizes {
  int64_t layers = 1;
  int64_t experts = 0;
  int64_t replicas = 0;
  int64_t groups = 1;  // of experts, equal runs: those from which the router chooses by group
  int64_t nodes = 1;
  int64_t gpus = 1;

  /// S, the replicas of a GPU.
  int64_t slots() const { return replicas / gpus; }
  /// Nodes that each hold whole groups: as many as given where they divide the groups, else one (EPLB's
  /// rule).
  int64_t closed_nodes() const { return groups % nodes == 0 ? nodes : 1; }
  friend bool operator==(const BalanceSizes&, const BalanceSizes&) = default;
};
/// Error: a size below 1 or above 65,536 (layers: 1,048,576), R < E, D does not divide R, and where nodes
/// divide the groups: groups that do not divide E, nodes that do not divide D.
void check_sizes(const BalanceSizes& sizes);
/// Error: check_sizes; a number of loads other than L·E; a load that is negative, NaN or infinite; a layer
/// whose loads sum to more than float32 holds.
void check_loads(std::span<const float> weight_LE, const BalanceSizes& sizes);

/// Where the replicas of every layer lie.
struct ReplicaPlacement {
  BalanceSizes sizes;
  int64_t most_copies = 0;       // the largest of logcnt
  std::vector<int32_t> phy2log;  // [L, R]: the expert in each slot
  std::vector<int32_t> log2phy;  // [L, E, most_copies]: the slots of each expert, then −1
  std::vector<int32_t> logcnt;   // [L, E]: replicas of each expert, ≥ 1

  std::span<const int32_t> slots_of_layer(int64_t layer) const {
    return std::span(phy2log).subspan(static_cast<size_t>(layer * sizes.replicas),
                                      static_cast<size_t>(sizes.replicas));
  }
};

/// EPLB, equal to DeepSeek's slot by slot, in float32: groups are packed onto nodes, experts replicated
/// inside each node, replicas packed onto its GPUs; as one group and one node where nodes do not divide the
/// groups. Error: check_loads.
ReplicaPlacement rebalance_experts(std::span<const float> weight_LE, const BalanceSizes& sizes);

/// The placement that is in use, and how much of it may change.
struct Incumbent {
  std::span<const int32_t> phy2log;  // [L, R]; empty: there is none
  /// The most pairs (layer, GPU, expert) of the new placement, all layers together, that the old one has not:
  /// the replicas whose weights travel.
  int64_t max_moves = std::numeric_limits<int64_t>::max();
};

/// The better solver: replication and packing decided together, each layer's largest load of a GPU as low as
/// is found within a fixed effort; the same bits always. Replicas keep whole groups inside nodes where EPLB's
/// do. With one node no GPU holds two replicas of one expert unless S exceeds the experts (with an incumbent:
/// unless it held them already and moves are short), and the largest load is at most EPLB's, unless EPLB's
/// gets below by putting two replicas of an expert on one GPU. With several it is never above EPLB's: where
/// only two such replicas reach that, EPLB's layer is given.
///
/// Given an incumbent, replicas that stay on their GPU stay in their slot, and moves go where they help most;
/// max_moves = 0 gives it back. Error: check_loads; an incumbent of another size, with an expert that
/// does not exist or has no replica, or with an expert on two nodes that each hold whole groups.
ReplicaPlacement balance_experts(std::span<const float> weight_LE, const BalanceSizes& sizes,
                                 const Incumbent& incumbent = {});

/// [L]: the largest load of a GPU over the mean of all; 1 where all loads are zero.
std::vector<double> max_over_mean(std::span<const float> weight_LE, const ReplicaPlacement& placement);
/// [L]: no placement of these sizes has a max_over_mean below; the proofs stand in balance_bound.h.
std::vector<double> lower_bound(std::span<const float> weight_LE, const BalanceSizes& sizes);
/// Replicas beyond the first of their expert on their GPU, in all layers.
int64_t duplicates(const ReplicaPlacement& placement);
/// Pairs (layer, GPU, expert) of the placement that `phy2log` [L, R], of the same sizes, has not.
int64_t moved(std::span<const int32_t> phy2log, const ReplicaPlacement& placement);

/// The tables of slots that are given, as [L, R]; replicas of an expert are listed in the order of their
/// slots. Error: a number of slots other than L·R; an expert that does not exist, or has no replica.
ReplicaPlacement placement_of(const BalanceSizes& sizes, std::vector<int32_t> phy2log);

}  // namespace phalanx::ep
