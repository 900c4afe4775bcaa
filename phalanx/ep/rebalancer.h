// When experts change places while a model trains or serves: their loads over the last steps, and a better
// placement every so often.
#pragma once

#include <deque>

#include "phalanx/ep/balance.h"

namespace phalanx::ep {

/// Tokens of every expert over the last `window` steps.
class LoadWindow {
 public:
  LoadWindow(int64_t numbers, int64_t window) : window_(window), sum_(static_cast<size_t>(numbers), 0) {}
  /// One step's [L·E]; the oldest step beyond the window is forgotten. Error: another number of them.
  void add(std::span<const int64_t> tokens_LE);
  /// [L, E]: sums over the window.
  std::vector<float> loads_LE() const { return {sum_.begin(), sum_.end()}; }
  int64_t steps() const { return std::ssize(steps_); }

 private:
  int64_t window_;
  std::vector<int64_t> sum_;
  std::deque<std::vector<int64_t>> steps_;
};

struct RebalanceOptions {
  int64_t every = 10;   ///< steps from one decision to the next
  int64_t window = 10;  ///< steps whose loads count
  /// The most replicas that travel at one decision, all layers together (Incumbent::max_moves).
  int64_t max_moves = std::numeric_limits<int64_t>::max();
  /// A placement is kept unless another lowers the mean over layers of the largest load by this part of it.
  double least_gain = 0.01;
};

/// Decides from the loads alone, so that ranks that are told the same decide the same.
class Rebalancer {
 public:
  /// Error: check_sizes, or a start of other sizes; `every` or `window` below 1.
  Rebalancer(RebalanceOptions options, ReplicaPlacement start);

  /// Tokens [L, E] of a step, all ranks together. True if the placement is another now.
  bool step(std::span<const int64_t> tokens_LE);
  const ReplicaPlacement& placement() const { return placement_; }

 private:
  RebalanceOptions options_;
  ReplicaPlacement placement_;
  LoadWindow window_;
  int64_t steps_ = 0;
};

}  // namespace phalanx::ep
