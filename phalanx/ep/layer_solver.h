// One layer: groups of experts onto nodes, then each node's replicas onto its GPUs.
#pragma once

#include "phalanx/ep/balance.h"
#include "phalanx/ep/node_solver.h"

namespace phalanx::ep {

/// The experts of a node, ascending, and their loads.
struct NodeExperts {
  std::vector<int32_t> expert;
  std::vector<double> load;
};

/// Keeps its working memory from layer to layer.
class LayerSolver {
 public:
  explicit LayerSolver(const BalanceSizes& sizes);

  /// The expert in each slot [R], valid until the next call; `eplb_R`: EPLB's placement of the same loads.
  /// Its assignment of groups to nodes is solved first, then, if that is not good enough, one of more even
  /// nodes; where EPLB's own slots are better than both, they stay.
  std::span<const int32_t> solve(std::span<const float> weight_E, std::span<const int32_t> eplb_R);
  /// Of the last solution.
  double largest_load() const { return best_; }

 private:
  void assign_groups(std::span<const float> weight_E);
  void keep_if_lower(std::span<const float> weight_E, std::span<const int32_t> slots_R);
  void solve_nodes(std::span<const float> weight_E, std::span<const int32_t> start_R);

  BalanceSizes sizes_;
  int nodes_;
  NodeSolver solver_;
  ReplicaPacking groups_;  // onto nodes
  ReplicaPacking whole_;   // the layer, to weigh what others have placed
  std::vector<double> group_load_;
  std::vector<int32_t> node_of_E_;
  std::vector<int32_t> local_of_E_;  // each expert's place in its node's list
  std::vector<int32_t> start_;       // a node's, in local numbers
  NodeExperts node_;
  std::vector<int32_t> best_R_;
  std::vector<int32_t> found_R_;
  double bound_ = 0;  // of the layer; 0 with one node, whose solver has its own
  double best_ = 0;
  double found_ = 0;
};

}  // namespace phalanx::ep
