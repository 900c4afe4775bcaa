// Boxes of a tensor, and how two of them share elements: what loading a saved piece into another layout
// needs.
#pragma once

#include <span>
#include <string>

#include "phalanx/base/function_ref.h"
#include "phalanx/comm/placement.h"

namespace phalanx {

/// Part of a full row-major tensor: [begin, end) of every dimension. A box of rank 0 is the one element.
struct Box {
  Shape begin;
  Shape end;

  Shape extents() const;
  int64_t volume() const { return extents().numel(); }
  /// "[0, 2]..[4, 6]"
  std::string text() const;
  friend bool operator==(const Box&, const Box&) = default;
};

Box whole(const Shape& shape);
Box box_of(const LocalSlice& slice);

/// What is wrong with a box of a tensor of that shape (another rank, turned around, past the end); "" when
/// nothing is.
std::string box_fault(const Box& box, const Shape& full);
/// What keeps boxes, each without fault, from holding every element of a tensor exactly once; "" when nothing
/// does.
std::string tiling_fault(const Shape& full, std::span<const Box> boxes);

/// True when at least one element lies in both.
bool share_elements(const Box& a, const Box& b);

/// Elements that lie side by side in both of two boxes: the first one's place in each, counted in the box's
/// own row-major order, and their number.
struct SharedRun {
  int64_t in_from;
  int64_t in_to;
  int64_t count;
};
/// Calls `run` for each longest run that two boxes of one tensor share, in ascending order of in_from.
void for_each_shared_run(const Box& from, const Box& to, FunctionRef<void(const SharedRun&)> run);

}  // namespace phalanx
