// Which rank has which experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "phalanx/base/error.h"

namespace phalanx::ep {

/// Experts 0…E−1 lie in runs: those of rank 0, then those of rank 1, …
class ExpertMap {
 public:
  static constexpr int64_t kMost = 1 << 20;

  /// Equal runs. Error: the ranks do not divide the experts.
  static ExpertMap even(int64_t experts, int ranks) {
    if (experts % ranks != 0) throw Error("ep = {} does not divide {} experts", ranks, experts);
    return ExpertMap(std::vector<int64_t>(static_cast<size_t>(ranks), experts / ranks));
  }
  /// counts[r] experts on rank r, 0 to kMost. Error: another count.
  explicit ExpertMap(std::span<const int64_t> counts) : first_{0} {
    for (const int64_t n : counts) {
      if (n < 0 || n > kMost) throw Error("rank {} has {} experts, at most {}", owner_rank(), n, kMost);
      owner_.resize(owner_.size() + static_cast<size_t>(n), owner_rank());
      first_.push_back(std::ssize(owner_));
    }
  }

  friend bool operator==(const ExpertMap&, const ExpertMap&) = default;

  int ranks() const { return static_cast<int>(first_.size()) - 1; }
  int64_t experts() const { return std::ssize(owner_); }
  /// The first expert of a rank, and how many it has.
  int64_t first(int rank) const { return first_[static_cast<size_t>(rank)]; }
  int64_t count(int rank) const { return first(rank + 1) - first(rank); }
  int32_t owner(int64_t expert) const { return owner_[static_cast<size_t>(expert)]; }

 private:
  int32_t owner_rank() const { return static_cast<int32_t>(first_.size()) - 1; }

  std::vector<int64_t> first_;  // [ranks + 1]
  std::vector<int32_t> owner_;  // [experts]
};

}  // namespace phalanx::ep
