// What a thread does on the side while it computes.
#pragma once

#include <cstdint>
#include <functional>

namespace phalanx {

/// While it lives, parallel_for calls `hook` between two ranges that the constructing thread runs, at most
/// every 100 µs; not between those of its other threads. What the hook throws is thrown by that parallel_for.
/// Those of one thread nest; the innermost counts. Destroyed by the thread that has made it.
class BetweenRanges {
 public:
  explicit BetweenRanges(std::function<void()> hook);
  ~BetweenRanges();
  BetweenRanges(const BetweenRanges&) = delete;
  BetweenRanges& operator=(const BetweenRanges&) = delete;

  /// For parallel_for, after each range.
  static void call() {
    if (innermost_) innermost_->call_if_due();
  }

 private:
  void call_if_due();

  static thread_local BetweenRanges* innermost_;

  std::function<void()> hook_;
  BetweenRanges* outer_;
  int64_t last_ns_ = 0;
};

}  // namespace phalanx
