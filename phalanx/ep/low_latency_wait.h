// Whom a low-latency operation waits for, and for how long.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "phalanx/comm/group.h"

namespace phalanx::ep {

/// The ranks of a group that one of them takes for dead.
class RankMask {
 public:
  using Clock = std::chrono::steady_clock;

  /// `after`: see LowLatencyOptions::mask_after. The group outlives the mask.
  RankMask(Group& group, std::chrono::milliseconds after);

  bool masked(int rank) const { return masked_[static_cast<size_t>(rank)]; }
  const std::vector<bool>& all() const { return masked_; }
  /// Error: not another rank of the group.
  void update(int rank, bool masked);
  /// Masks a rank for which this one has waited since `since`, if that is too long; says whether.
  bool mask_late(int rank, Clock::time_point since);

 private:
  Group& group_;
  std::chrono::milliseconds after_;
  std::vector<bool> masked_;
};

/// A hook's side of what it waits for.
struct Hooked {
  const bool& called;  ///< whether it is
  Tensor waited_R;     ///< LowLatencyStats::waited_R
};

/// Waits until a hook has been called.
class Called final : public CommWaitable {
 public:
  explicit Called(const bool& called) : called_(called) {}
  bool poll() override { return called_; }
  PooledVector<int> missing() const override { return {}; }

 private:
  const bool& called_;
};

/// Waits for one rank's part, unless that rank is masked, or becomes so because it is late: patience begins
/// when it is waited for and the hook has been called.
class FromRank : public CommWaitable {
 public:
  FromRank(RankMask& mask, const GroupInfo& group, int rank, const Hooked& hook)
      : mask_(mask), group_(group), rank_(rank), hook_(hook) {}

  bool poll() final {
    const bool done = mask_.masked(rank_) || arrived() || (since_ && mask_.mask_late(rank_, *since_));
    if (!done && !since_ && hook_.called) since_ = RankMask::Clock::now();
    if (done && since_) count_wait();
    return done;
  }
  PooledVector<int> missing() const final {
    PooledVector<int> ranks;
    ranks.push_back(group_.members[static_cast<size_t>(rank_)]);
    return ranks;
  }

 protected:
  ~FromRank() = default;
  virtual bool arrived() = 0;

 private:
  void count_wait();

  RankMask& mask_;
  const GroupInfo& group_;
  int rank_;
  Hooked hook_;
  std::optional<RankMask::Clock::time_point> since_;
};

}  // namespace phalanx::ep
