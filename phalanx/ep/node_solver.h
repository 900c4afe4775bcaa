// Replication and packing of one node's experts, decided together.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "phalanx/ep/balance_bound.h"
#include "phalanx/ep/replica_packing.h"

namespace phalanx::ep {

/// Starts from as small replicas as can be, which is EPLB's way and fits even loads. With few heavy experts
/// it spends nearly all replicas on them, and GPUs with none of those, whose slots are few, stay below the
/// mean. So other starts leave the largest replicas larger, and their GPUs' other slots to the smallest
/// experts; those that pack best are improved. Keeps its working memory.
class NodeSolver {
 public:
  /// The experts in the slots of `gpus` GPUs of `slots` each; valid until the next call. `start_R`: slots to
  /// start from (or empty); the largest load is then at most theirs, if they hold no expert twice on a GPU.
  /// `floor`: a load that some other node has anyway; there is no use in staying below.
  std::span<const int32_t> solve(std::span<const double> load_E, int gpus, int slots,
                                 std::span<const int32_t> start_R, double floor);
  /// Of the last solution.
  double largest_load() const { return best_; }

 private:
  void spread_all(int gpus, int slots);
  double count_smallest(int gpus, int replicas);
  bool count_for(double most, int gpus, int replicas);
  void begin_at(std::span<const int32_t> start_R, int gpus, double floor);
  void improve();
  void shake();
  void try_larger_replicas(double least, int gpus, int replicas);

  struct Keyed {
    double load;
    int32_t index;
  };
  ReplicaPacking packing_;
  NodeBound node_bound_;
  std::span<const double> load_E_;
  std::vector<int32_t> copies_E_;
  std::vector<int32_t> tried_E_;  // the counts before
  std::vector<Keyed> heap_;
  std::vector<Keyed> starts_;
  std::vector<int32_t> best_R_;
  double bound_ = 0;
  double stop_ = 0;    // no change is tried below
  double enough_ = 0;  // no other start is tried below
  double best_ = 0;
};

}  // namespace phalanx::ep
