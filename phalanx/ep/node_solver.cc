#include "phalanx/ep/node_solver.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace phalanx::ep {
namespace {

constexpr double kStop = 1.001;    // times the bound: no change is tried below
constexpr double kEnough = 1.002;  // times the bound: no other start is tried below
// Times the bound: where an expert has kHeavy, and the start above kFar, that waits until no other has been
// enough. It rarely leads there.
constexpr double kFar = 1.05;
constexpr double kHeavy = 4;
constexpr double kPromising = 1.01;  // times the bound: a start that packs below is improved at once
// Sizes of the largest replica that are packed, in 16ths of the way from the least to the bound: those first
// that most often pack well where tails are heavy.
constexpr std::array kStarts = {8, 10, 12, 14, 16, 6, 9, 7, 11, 13, 15, 5, 4, 3, 2, 1};
constexpr int kImproved = 4;            // of those, the best are improved
constexpr int64_t kShakenSlots = 8192;  // slots of a node times shakes
constexpr int kChanges = 1000;          // far more than any start has needed

}  // namespace

// Every GPU has every expert, and the same ones again: all loads are equal.
void NodeSolver::spread_all(int gpus, int slots) {
  const auto experts = static_cast<int>(load_E_.size());
  best_R_.clear();
  for (int g = 0; g < gpus; ++g) {
    for (int s = 0; s < slots; ++s) best_R_.push_back(s % experts);
  }
  packing_.adopt(best_R_);
  best_ = packing_.largest_load();
}

// Each replica beyond an expert's first to the expert whose replicas are largest, up to one a GPU. Gives the
// largest replica of the experts that could have more.
double NodeSolver::count_smallest(int gpus, int replicas) {
  const auto after = [](const Keyed& a, const Keyed& b) {
    return a.load != b.load ? a.load < b.load : a.index > b.index;
  };
  copies_E_.assign(load_E_.size(), 1);
  heap_.clear();
  for (size_t e = 0; e < load_E_.size(); ++e) heap_.push_back({load_E_[e], static_cast<int32_t>(e)});
  std::ranges::make_heap(heap_, after);
  for (int left = replicas - static_cast<int>(load_E_.size()); left > 0;) {
    std::ranges::pop_heap(heap_, after);
    Keyed& most = heap_.back();
    int32_t& copies = copies_E_[static_cast<size_t>(most.index)];
    if (copies == gpus) {
      heap_.pop_back();
      continue;
    }
    most.load = load_E_[static_cast<size_t>(most.index)] / ++copies;
    std::ranges::push_heap(heap_, after);
    --left;
  }
  return heap_.front().load;
}

// Replicas of at most `most` where an expert may have so many, and the rest to the smallest experts, whose
// loads hardly count. False: that takes more replicas than there are.
bool NodeSolver::count_for(double most, int gpus, int replicas) {
  int left = replicas;
  copies_E_.resize(load_E_.size());
  for (size_t e = 0; e < load_E_.size(); ++e) {
    const double needed = std::ceil(load_E_[e] / most * (1 - 1e-12));
    copies_E_[e] = static_cast<int32_t>(std::clamp<double>(needed, 1, gpus));
    left -= copies_E_[e];
  }
  if (left < 0) return false;
  while (left > 0) {
    size_t least = load_E_.size();
    for (size_t e = 0; e < load_E_.size(); ++e) {
      if (copies_E_[e] < gpus && (least == load_E_.size() || load_E_[e] < load_E_[least])) least = e;
    }
    const int32_t more = std::min(left, gpus - copies_E_[least]);
    copies_E_[least] += more;
    left -= more;
  }
  return true;
}

// At the slots that are given, or where there are none, or some expert has more replicas than there are GPUs,
// at the counts. With an expert twice on a GPU they may be better than what remains when those are parted.
void NodeSolver::begin_at(std::span<const int32_t> start_R, int gpus, double floor) {
  if (!start_R.empty()) {
    packing_.adopt(start_R);
    const double load = std::max(packing_.largest_load(), floor);
    stop_ = std::min(stop_, load);
    enough_ = std::min(enough_, load);
    if (std::ranges::max(packing_.copies_E()) <= gpus) {
      packing_.part_duplicates();
      return;
    }
  }
  packing_.pack(copies_E_);
}

void NodeSolver::improve() {
  packing_.improve(stop_, kChanges);
  const double load = packing_.largest_load();
  if (load > best_) return;  // an equal one leads further
  best_ = load;
  best_R_.assign(packing_.expert_R().begin(), packing_.expert_R().end());
}

// Packs one start after the other; those that pack well are improved at once, then the best of the others.
void NodeSolver::try_larger_replicas(double least, int gpus, int replicas) {
  const auto pack = [&](int k) {
    if (!count_for(least + (bound_ - least) * k / 16, gpus, replicas)) return false;
    packing_.pack(copies_E_);
    return true;
  };
  starts_.clear();
  for (const int k : kStarts) {
    if (!pack(k)) continue;
    starts_.push_back({packing_.largest_load(), k});
    if (packing_.largest_load() > kPromising * bound_) continue;
    starts_.pop_back();
    improve();
    if (best_ <= enough_) return;
  }
  const auto improved = std::min<int64_t>(kImproved, std::ssize(starts_));
  std::ranges::partial_sort(starts_, starts_.begin() + improved, [](const Keyed& a, const Keyed& b) {
    return a.load != b.load ? a.load < b.load : a.index < b.index;
  });
  for (int64_t i = 0; i < improved && best_ > enough_; ++i) {
    pack(starts_[static_cast<size_t>(i)].index);
    improve();
  }
}

// Out of a place where no single change helps: changes at random, improved again.
void NodeSolver::shake() {
  std::minstd_rand random(1);  // the same numbers every time
  const auto shakes = kShakenSlots / std::ssize(best_R_);
  for (int64_t i = 0; i < shakes && best_ > enough_; ++i) {
    packing_.adopt(best_R_);
    packing_.shake(random);
    improve();
  }
}

std::span<const int32_t> NodeSolver::solve(std::span<const double> load_E, int gpus, int slots,
                                           std::span<const int32_t> start_R, double floor) {
  load_E_ = load_E;
  packing_.begin(load_E, gpus, slots);
  best_R_.clear();
  if (slots >= std::ssize(load_E)) {
    spread_all(gpus, slots);
    return best_R_;
  }
  bound_ = std::max(floor, node_bound_.of(load_E, gpus, slots));
  const double least = count_smallest(gpus, gpus * slots);
  stop_ = kStop * bound_;
  enough_ = kEnough * bound_;
  best_ = std::numeric_limits<double>::infinity();
  begin_at(start_R, gpus, floor);
  const bool far =
      least < bound_ && std::ranges::max(load_E) > kHeavy * bound_ && packing_.largest_load() > kFar * bound_;
  if (!far) improve();
  if (best_ > enough_ && least < bound_) try_larger_replicas(least, gpus, gpus * slots);
  if (best_ > enough_ && far) {
    count_smallest(gpus, gpus * slots);
    begin_at(start_R, gpus, floor);
    improve();
  }
  if (best_ > enough_) shake();
  return best_R_;
}

}  // namespace phalanx::ep
