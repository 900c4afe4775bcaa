#include "phalanx/tensor/segments.h"

#include <algorithm>
#include <tuple>

namespace phalanx {

void Segments::add(std::byte* data, size_t bytes, bool stays) {
  free_.push_back(&new_range({.data = data, .bytes = bytes, .free = true, .stays = stays}));
}

Segments::Range* Segments::take(size_t bytes) {
  Range* best = nullptr;
  for (Range* r : free_) {
    if (r->bytes < bytes) continue;
    if (!best || std::tie(r->bytes, r->data) < std::tie(best->bytes, best->data)) best = r;
  }
  if (!best) return nullptr;
  const auto at = std::ranges::find(free_, best);
  if (best->bytes == bytes) {
    *at = free_.back();
    free_.pop_back();
  } else {
    Range& rest = new_range(*best);  // which is free in its place
    rest.data += bytes;
    rest.bytes -= bytes;
    rest.before = best;
    if (rest.after) rest.after->before = &rest;
    best->after = &rest;
    best->bytes = bytes;
    *at = &rest;
  }
  best->free = false;
  return best;
}

void Segments::give(Range* range) noexcept {
  range->free = true;
  free_.push_back(range);
  if (range->after && range->after->free) append(*range, *range->after);
  if (range->before && range->before->free) append(*range->before, *range);
}

void Segments::append(Range& range, Range& after) noexcept {
  range.bytes += after.bytes;
  range.after = after.after;
  if (range.after) range.after->before = &range;
  std::erase(free_, &after);
  spare_.push_back(&after);
}

Segments::Range& Segments::new_range(const Range& range) {
  if (spare_.empty()) return ranges_.emplace_back(range);
  Range& spare = *spare_.back();
  spare_.pop_back();
  spare = range;
  return spare;
}

}  // namespace phalanx
