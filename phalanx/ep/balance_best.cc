// balance_experts: groups onto nodes, and each node by the solver.
#include <algorithm>

#include "phalanx/ep/balance.h"
#include "phalanx/ep/balance_bound.h"
#include "phalanx/ep/balance_loads.h"
#include "phalanx/ep/incumbent.h"
#include "phalanx/ep/layer_solver.h"

namespace phalanx::ep {

ReplicaPlacement balance_experts(std::span<const float> weight_LE, const BalanceSizes& sizes,
                                 const Incumbent& incumbent) {
  const ReplicaPlacement eplb = rebalance_experts(weight_LE, sizes);
  LayerSolver solver(sizes);
  std::vector<int32_t> phy2log;
  if (!incumbent.phy2log.empty()) return Migration(weight_LE, sizes, incumbent).run(solver, eplb);
  phy2log.reserve(eplb.phy2log.size());
  for (int64_t l = 0; l < sizes.layers; ++l) {
    const std::span<const int32_t> slots =
        solver.solve(loads_of_layer(weight_LE, sizes, l), eplb.slots_of_layer(l));
    phy2log.insert(phy2log.end(), slots.begin(), slots.end());
  }
  return placement_of(sizes, std::move(phy2log));
}

}  // namespace phalanx::ep
