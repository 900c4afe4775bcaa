#include "phalanx/base/between_ranges.h"

#include <utility>

#include "phalanx/base/trace.h"

namespace phalanx {
namespace {

constexpr int64_t kPauseNs = 100'000;

}  // namespace

thread_local BetweenRanges* BetweenRanges::innermost_ = nullptr;

BetweenRanges::BetweenRanges(std::function<void()> hook)
    : hook_(std::move(hook)), outer_(std::exchange(innermost_, this)) {}

BetweenRanges::~BetweenRanges() { innermost_ = outer_; }

void BetweenRanges::call_if_due() {
  const int64_t now = trace_now();
  if (now - last_ns_ < kPauseNs) return;
  last_ns_ = now;
  hook_();
}

}  // namespace phalanx
