// From the placement in use to a better one, with as many moves as are allowed.
#pragma once

#include "phalanx/ep/balance.h"
#include "phalanx/ep/layer_solver.h"

namespace phalanx::ep {

/// All layers at once, since they share the moves: the layer that is furthest above its bound changes next,
/// one change of its most loaded GPU at a time. Where that ends and moves are left, layers are placed afresh,
/// GPUs numbered so that as much as can stays; those that gain the most for a move come first.
class Migration {
 public:
  /// Error: as balance_experts.
  Migration(std::span<const float> weight_LE, const BalanceSizes& sizes, const Incumbent& incumbent);

  /// `eplb`: EPLB's placement of the same loads.
  ReplicaPlacement run(LayerSolver& solver, const ReplicaPlacement& eplb);

 private:
  struct Node {
    NodeExperts experts;
    std::vector<int32_t> before;  // the expert in each slot, in the node's numbers
    ReplicaPacking packing;
  };
  struct Layer {
    std::vector<Node> nodes;
    double bound = 0;
    std::vector<int32_t> afresh;  // [R]; empty: changed step by step

    int most_loaded() const;
    double largest_load() const { return nodes[static_cast<size_t>(most_loaded())].packing.largest_load(); }
    int64_t moves() const;
  };
  struct Gain {
    double load;
    int64_t moves;
    int64_t layer;
    std::vector<int32_t> slots;
  };

  std::span<const int32_t> before_R(int64_t layer) const;
  void read_layer(int64_t layer);
  void step_by_step();
  void place_afresh(LayerSolver& solver, const ReplicaPlacement& eplb);
  std::vector<int32_t> slots_of(int64_t layer) const;

  std::span<const float> weight_LE_;
  BalanceSizes sizes_;
  std::span<const int32_t> before_LR_;
  int64_t moves_left_;
  std::vector<Layer> layers_;
};

}  // namespace phalanx::ep
