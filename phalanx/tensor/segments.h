// Memory in segments, from which ranges of any size are cut: what one size has given back serves others.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

namespace phalanx {

/// Not thread-safe. Takes and gives in steps as many as there are free ranges, some hundreds in a training
/// step; and memory of its own only for more ranges than ever before.
class Segments {
 public:
  struct Range {
    std::byte* data = nullptr;
    size_t bytes = 0;
    bool free = false;
    bool stays = false;       // its segment is never given back
    Range* before = nullptr;  // its neighbours in the segment
    Range* after = nullptr;
  };

  /// A new segment, all of it free.
  void add(std::byte* data, size_t bytes, bool stays);
  /// So many bytes of the smallest free range that holds them, of equal ones the first in memory; null: none
  /// does.
  Range* take(size_t bytes);
  /// Free neighbours become one range. Others may have it at once.
  void give(Range* range) noexcept;
  /// Forgets segments that are all free, and do not stay, where leave(data, bytes) is true.
  template <class F>
  void leave(F&& leaves) noexcept {
    std::erase_if(free_, [&](Range* r) {
      if (r->stays || r->before || r->after || !leaves(r->data, r->bytes)) return false;
      spare_.push_back(r);
      return true;
    });
  }

 private:
  Range& new_range(const Range& range);
  void append(Range& range, Range& after) noexcept;  // its free neighbour

  std::deque<Range> ranges_;
  std::vector<Range*> spare_;  // of them, without memory
  std::vector<Range*> free_;   // in any order
};

}  // namespace phalanx
