#include "phalanx/ep/low_latency_wait.h"

namespace phalanx::ep {

// Where late ranks are masked, none of them is an error.
RankMask::RankMask(Group& group, std::chrono::milliseconds after)
    : group_(group), after_(after), masked_(static_cast<size_t>(group.size()), false) {
  for (int r = 0; r < group.size() && after.count() > 0; ++r) group.excuse(r, true);
}

void RankMask::update(int rank, bool masked) {
  if (rank < 0 || rank >= group_.size() || rank == group_.rank()) {
    throw Error("update_mask: rank {} is not another rank than {} of {}", rank, group_.rank(), group_.size());
  }
  masked_[static_cast<size_t>(rank)] = masked;
  group_.excuse(rank, masked || after_.count() > 0);
}

bool RankMask::mask_late(int rank, Clock::time_point since) {
  if (after_.count() == 0 || Clock::now() - since < after_) return false;
  update(rank, true);
  return true;
}

void FromRank::count_wait() {
  const std::chrono::nanoseconds waited = RankMask::Clock::now() - *since_;
  since_.reset();
  if (hook_.waited_R.defined()) hook_.waited_R.data<int64_t>()[rank_] += waited.count();
}

}  // namespace phalanx::ep
