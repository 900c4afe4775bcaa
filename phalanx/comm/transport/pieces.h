// Long messages in pieces.
#pragma once

#include <algorithm>
#include <deque>
#include <utility>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// A message's bytes on their way in pieces, few at a time: MPI passes on a piece that has begun in one call,
/// which lasts as long as the network takes it, and what else must go to the same rank, such as the news that
/// we are ready for its own message, waits behind all that have begun. It holds the tensor, so that MPI may
/// read or write it even if its owner unwinds.
template <class Request>
class Pieces {
 public:
  explicit Pieces(Tensor t) : tensor_(std::move(t)), at_(tensor_.raw()), left_(tensor_.bytes()) {}

  bool all_begun() const { return left_ == 0; }
  /// Calls request = start(at, count) for as many as may be on their way, if any may begin, and done(request)
  /// in their order; adds those that have arrived to `arrived`. True when all have.
  template <class Start, class Done>
  bool move(bool may_begin, int64_t& arrived, Start start, Done done) {
    while (true) {
      while (may_begin && left_ > 0 && requests_.size() < kAtOnce) {
        const size_t n = std::min(kBytes, left_);
        requests_.push_back(start(at_, static_cast<int>(n)));
        at_ += n;
        left_ -= n;
      }
      if (requests_.empty()) return left_ == 0;
      if (!done(requests_.front())) return false;
      requests_.pop_front();
      ++arrived;
    }
  }

 private:
  static constexpr size_t kBytes = size_t{256} << 10;
  static constexpr size_t kAtOnce = 4;

  Tensor tensor_;
  std::byte* at_;  // of the first piece that has not begun
  size_t left_;
  std::deque<Request> requests_;
};

}  // namespace phalanx
