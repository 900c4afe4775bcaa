// What decoding reads, besides what it has just computed, stays as it is for a whole step.
#pragma once

#include <utility>

namespace phalanx {

/// While one lives, what the thread's rmsnorm, products of few rows and append_and_attend read besides rows
/// that are computed (weights; positions and tables) is written by none of the kernels that the thread queued
/// since the last one that was not launched early (ops/dependents.cuh). On a GPU those may then read it
/// before what stands in front of them has ended.
class AtRest {
 public:
  AtRest() : before_(std::exchange(on_, true)) {}
  ~AtRest() { on_ = before_; }
  AtRest(const AtRest&) = delete;
  AtRest& operator=(const AtRest&) = delete;

  /// Whether the calling thread has one.
  static bool on() { return on_; }

 private:
  static inline thread_local bool on_ = false;
  bool before_;
};

}  // namespace phalanx
