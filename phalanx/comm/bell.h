// How a rank sleeps until another one has done something, without a system call when nobody sleeps.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "phalanx/base/futex.h"

namespace phalanx {

/// What ranks write lies this many bytes apart from what others write: processors fetch cache lines in pairs.
inline constexpr size_t kApart = 128;

/// One rank's; plain memory, so that processes can share it. The sleeper arms the bell, looks once more at
/// everything it waits for, and sleeps; the others ring after what they have done. No ring is lost as long as
/// what is looked at is written and read sequentially consistent.
class alignas(kApart) Bell {
 public:
  /// Wakes the rank if it sleeps, or is about to.
  void ring() noexcept {
    if (!armed_.load(std::memory_order_seq_cst)) return;
    word_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(word_);
  }

  /// Announces sleep; gives the token for sleep().
  uint32_t arm() noexcept {
    const uint32_t seen = word_.load(std::memory_order_seq_cst);
    armed_.store(1, std::memory_order_seq_cst);
    return seen;
  }
  /// Sleeps until rung after arm() gave `seen`, at most `limit`. May return early.
  void sleep(uint32_t seen, std::chrono::microseconds limit) { futex_wait(word_, seen, limit); }
  void disarm() noexcept { armed_.store(0, std::memory_order_relaxed); }

 private:
  std::atomic<uint32_t> word_{0};
  std::atomic<uint32_t> armed_{0};
};

}  // namespace phalanx
