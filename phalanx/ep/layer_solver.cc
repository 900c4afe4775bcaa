#include "phalanx/ep/layer_solver.h"

#include <algorithm>

#include "phalanx/ep/balance_bound.h"
#include "phalanx/ep/balance_loads.h"

namespace phalanx::ep {
namespace {

constexpr double kEnough = 1.002;  // times the bound: no other nodes are tried below
constexpr int kGroupChanges = 1000;
constexpr double kRounding = 1e-12;

}  // namespace

LayerSolver::LayerSolver(const BalanceSizes& sizes)
    : sizes_(sizes), nodes_(static_cast<int>(sizes.closed_nodes())) {
  node_of_E_.resize(static_cast<size_t>(sizes.experts));
  local_of_E_.resize(static_cast<size_t>(sizes.experts));
}

// As even nodes as are found.
void LayerSolver::assign_groups(std::span<const float> weight_E) {
  const auto size = static_cast<size_t>(sizes_.experts / sizes_.groups);
  group_load_.clear();
  for (size_t at = 0; at < weight_E.size(); at += size)
    group_load_.push_back(sum_of(weight_E.subspan(at, size)));
  groups_.begin(group_load_, nodes_, static_cast<int>(sizes_.groups) / nodes_);
  groups_.pack(std::vector<int32_t>(group_load_.size(), 1));
  groups_.improve(0, kGroupChanges);
  const std::span<const int32_t> packed = groups_.expert_R();
  for (size_t i = 0; i < packed.size(); ++i) {
    const auto node = static_cast<int32_t>(i * static_cast<size_t>(nodes_) / packed.size());
    const auto first = node_of_E_.begin() + packed[i] * static_cast<int64_t>(size);
    std::fill(first, first + static_cast<int64_t>(size), node);
  }
}

// Into found_R_; start_R is empty or has the experts on the nodes that node_of_E_ says.
void LayerSolver::solve_nodes(std::span<const float> weight_E, std::span<const int32_t> start_R) {
  const auto replicas = static_cast<size_t>(sizes_.replicas / nodes_);
  found_R_.clear();
  found_ = 0;
  for (int n = 0; n < nodes_; ++n) {
    node_.expert.clear();
    node_.load.clear();
    for (size_t e = 0; e < weight_E.size(); ++e) {
      if (node_of_E_[e] != n) continue;
      local_of_E_[e] = static_cast<int32_t>(node_.expert.size());
      node_.expert.push_back(static_cast<int32_t>(e));
      node_.load.push_back(weight_E[e]);
    }
    start_.clear();
    if (!start_R.empty()) {
      for (const int32_t e : start_R.subspan(static_cast<size_t>(n) * replicas, replicas)) {
        start_.push_back(local_of_E_[static_cast<size_t>(e)]);
      }
    }
    const auto slots = solver_.solve(node_.load, static_cast<int>(sizes_.gpus) / nodes_,
                                     static_cast<int>(sizes_.slots()), start_, bound_);
    for (const int32_t e : slots) found_R_.push_back(node_.expert[static_cast<size_t>(e)]);
    found_ = std::max(found_, solver_.largest_load());
  }
}

std::span<const int32_t> LayerSolver::solve(std::span<const float> weight_E,
                                            std::span<const int32_t> eplb_R) {
  const size_t replicas = eplb_R.size() / static_cast<size_t>(nodes_);
  for (size_t i = 0; i < eplb_R.size(); ++i) {
    node_of_E_[static_cast<size_t>(eplb_R[i])] = static_cast<int32_t>(i / replicas);
  }
  bound_ = nodes_ == 1 ? 0 : layer_bound(weight_E, sizes_);
  solve_nodes(weight_E, eplb_R);
  best_ = found_;
  best_R_.swap(found_R_);
  if (nodes_ == 1) return best_R_;
  if (sizes_.groups > nodes_ && best_ > kEnough * bound_) {
    assign_groups(weight_E);
    solve_nodes(weight_E, {});
    if (found_ < best_) {
      best_ = found_;
      best_R_.swap(found_R_);
    }
  }
  keep_if_lower(weight_E, eplb_R);
  return best_R_;
}

// A placement that may have an expert twice on a GPU.
void LayerSolver::keep_if_lower(std::span<const float> weight_E, std::span<const int32_t> slots_R) {
  const std::vector<double> load_E(weight_E.begin(), weight_E.end());
  whole_.begin(load_E, static_cast<int>(sizes_.gpus), static_cast<int>(sizes_.slots()));
  whole_.adopt(slots_R);
  if (whole_.largest_load() >= best_ * (1 - kRounding)) return;
  best_ = whole_.largest_load();
  best_R_.assign(slots_R.begin(), slots_R.end());
}

}  // namespace phalanx::ep
