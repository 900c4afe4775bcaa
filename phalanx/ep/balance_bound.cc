#include "phalanx/ep/balance_bound.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace phalanx::ep {
namespace {

constexpr int kIntervals = 16;       // of ρ, in `companions`
constexpr double kRounding = 1e-12;  // what sums in another order may differ by

// Replicas of at most `most` that a load needs.
int64_t needed(double load, double most) {
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(load / most * (1 - kRounding))));
}

double node_bound(std::span<const float> weight_E, const BalanceSizes& s) {
  const int64_t nodes = s.closed_nodes();
  if (nodes == 1) return 0;
  const auto size = static_cast<size_t>(s.experts / s.groups);
  std::vector<double> groups;
  for (size_t at = 0; at < weight_E.size(); at += size) {
    const auto group = weight_E.subspan(at, size);
    groups.push_back(std::accumulate(group.begin(), group.end(), 0.0));
  }
  std::ranges::sort(groups);
  const double others = std::accumulate(groups.begin(), groups.begin() + (s.groups / nodes - 1), 0.0);
  const int64_t gpus = s.gpus / nodes;
  return (groups.back() + others) / static_cast<double>(gpus);
}

}  // namespace

// Giving each further replica to the expert whose replicas are largest leaves them as small as can be.
double NodeBound::largest_replica(std::span<const double> load_E, int64_t replicas) {
  const auto smaller = [](const Replica& a, const Replica& b) { return a.load < b.load; };
  heap_.clear();
  for (size_t e = 0; e < load_E.size(); ++e) heap_.push_back({load_E[e], e});
  std::ranges::make_heap(heap_, smaller);
  copies_.assign(load_E.size(), 1);
  for (int64_t extra = replicas - std::ssize(load_E); extra > 0; --extra) {
    std::ranges::pop_heap(heap_, smaller);
    Replica& most = heap_.back();
    most.load = load_E[most.expert] / static_cast<double>(++copies_[most.expert]);
    std::ranges::push_heap(heap_, smaller);
  }
  return heap_.front().load;
}

// What the slots − 1 smallest replicas sum to, at least, when none is larger than `most`.
double NodeBound::companions(std::span<const double> load_E, int64_t replicas, int64_t slots, double most) {
  int64_t left = replicas;
  for (size_t e = 0; e < load_E.size(); ++e) left -= copies_[e] = needed(load_E[e], most);
  smallest_.clear();
  for (size_t e = 0; e < load_E.size(); ++e) {
    smallest_.push_back({load_E[e] / static_cast<double>(copies_[e] + left), e});
  }
  const auto kept = std::min<int64_t>(slots - 1, std::ssize(smallest_));
  std::ranges::partial_sort(smallest_, smallest_.begin() + kept, {}, &Replica::load);
  double sum = 0;
  int64_t missing = slots - 1;
  for (const Replica& r : smallest_) {
    const int64_t n = std::min(missing, copies_[r.expert] + left);
    sum += static_cast<double>(n) * r.load;
    if ((missing -= n) == 0) break;
  }
  return sum;
}

// The largest replica, `least` or more, and its companions; of no interest when not above `mean`.
double NodeBound::with_companions(std::span<const double> load_E, int64_t replicas, int64_t slots,
                                  double least, double mean) {
  const double most = companions(load_E, replicas, slots, least);
  double bound = least + most;
  for (int i = 0; i < kIntervals && bound > mean; ++i) {
    const double begin = least + most * i / kIntervals;
    const double end = least + most * (i + 1) / kIntervals;
    bound = std::min(bound, begin + companions(load_E, replicas, slots, end));
  }
  return bound;
}

double NodeBound::of(std::span<const double> load_E, int64_t gpus, int64_t slots) {
  const double sum = std::accumulate(load_E.begin(), load_E.end(), 0.0);
  const double mean = sum / static_cast<double>(gpus);
  if (sum == 0 || slots >= std::ssize(load_E)) return mean;
  const double replica = largest_replica(load_E, gpus * slots);
  return std::max(mean, with_companions(load_E, gpus * slots, slots, replica, mean) * (1 - kRounding));
}

double layer_bound(std::span<const float> weight_E, const BalanceSizes& sizes) {
  const std::vector<double> load_E(weight_E.begin(), weight_E.end());
  return std::max(NodeBound().of(load_E, sizes.gpus, sizes.slots()),
                  node_bound(weight_E, sizes) * (1 - kRounding));
}

}  // namespace phalanx::ep
