#include "phalanx/ep/rebalancer.h"

#include <algorithm>
#include <numeric>

#include "phalanx/base/error.h"

namespace phalanx::ep {
namespace {

double mean_of_largest(std::span<const float> loads_LE, const ReplicaPlacement& placement) {
  const std::vector<double> largest = max_over_mean(loads_LE, placement);
  return std::accumulate(largest.begin(), largest.end(), 0.0) / static_cast<double>(largest.size());
}

}  // namespace

void LoadWindow::add(std::span<const int64_t> tokens_LE) {
  if (tokens_LE.size() != sum_.size()) {
    throw Error("loads of {} experts, {} are counted", tokens_LE.size(), sum_.size());
  }
  steps_.emplace_back(tokens_LE.begin(), tokens_LE.end());
  std::ranges::transform(sum_, tokens_LE, sum_.begin(), std::plus());
  if (std::ssize(steps_) <= window_) return;
  std::ranges::transform(sum_, steps_.front(), sum_.begin(), std::minus());
  steps_.pop_front();
}

Rebalancer::Rebalancer(RebalanceOptions options, ReplicaPlacement start)
    : options_(options),
      placement_(placement_of(start.sizes, std::move(start.phy2log))),
      window_(placement_.sizes.layers * placement_.sizes.experts, options.window) {
  if (options.every < 1 || options.window < 1) {
    throw Error("experts change places every {} steps by the loads of {}; both are at least 1", options.every,
                options.window);
  }
}

bool Rebalancer::step(std::span<const int64_t> tokens_LE) {
  window_.add(tokens_LE);
  if (++steps_ % options_.every != 0) return false;
  const std::vector<float> loads = window_.loads_LE();
  ReplicaPlacement better = balance_experts(loads, placement_.sizes,
                                            {.phy2log = placement_.phy2log, .max_moves = options_.max_moves});
  const double now = mean_of_largest(loads, placement_);
  if (mean_of_largest(loads, better) > now * (1 - options_.least_gain)) return false;
  placement_ = std::move(better);
  return true;
}

}  // namespace phalanx::ep
