#include "phalanx/model/box.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

namespace phalanx {
namespace {

using Extents = std::array<int64_t, Shape::kMaxRank>;

Shape shape_of(const Extents& extents, int rank) {
  return Shape(std::span(extents).first(static_cast<size_t>(rank)));
}

// True when every dimension has a common range with elements.
bool intersect(const Box& a, const Box& b, Extents& begin, Extents& end) {
  bool some = true;
  for (int d = 0; d < a.begin.rank(); ++d) {
    const auto i = static_cast<size_t>(d);
    begin[i] = std::max(a.begin[d], b.begin[d]);
    end[i] = std::min(a.end[d], b.end[d]);
    some = some && begin[i] < end[i];
  }
  return some;
}

// The place of an element of the full tensor in a box's own row-major order.
int64_t place_in(const Box& box, const Extents& index) {
  int64_t place = 0;
  for (int d = 0; d < box.begin.rank(); ++d) {
    place = place * (box.end[d] - box.begin[d]) + index[static_cast<size_t>(d)] - box.begin[d];
  }
  return place;
}

}  // namespace

Shape Box::extents() const {
  PHX_CHECK(begin.rank() == end.rank(), "box {}", text());
  Extents extents{};
  for (int d = 0; d < begin.rank(); ++d) extents[static_cast<size_t>(d)] = end[d] - begin[d];
  return shape_of(extents, begin.rank());
}

std::string Box::text() const { return format("{}..{}", begin, end); }

Box whole(const Shape& shape) { return {shape_of({}, shape.rank()), shape}; }

Box box_of(const LocalSlice& slice) {
  Extents end{};
  for (int d = 0; d < slice.full.rank(); ++d) {
    const auto i = static_cast<size_t>(d);
    end[i] = slice.begin[i] + slice.local[d];
  }
  return {shape_of(slice.begin, slice.full.rank()), shape_of(end, slice.full.rank())};
}

std::string box_fault(const Box& box, const Shape& full) {
  if (box.begin.rank() != full.rank() || box.end.rank() != full.rank()) {
    return format("part {} of a tensor of shape {}", box.text(), full);
  }
  for (int d = 0; d < full.rank(); ++d) {
    if (box.begin[d] > box.end[d] || box.end[d] > full[d]) {
      return format("part {} of a tensor of shape {}: dimension {}", box.text(), full, d);
    }
  }
  return "";
}

std::string tiling_fault(const Shape& full, std::span<const Box> boxes) {
  const auto wanted = static_cast<uint64_t>(full.numel());
  uint64_t held = 0;
  for (const Box& box : boxes) {
    held += static_cast<uint64_t>(box.volume());
    if (held > wanted) return "some elements are in two parts";
  }
  if (held < wanted) return format("the parts hold {} of {} elements", held, wanted);

  std::vector<const Box*> sorted;
  for (const Box& box : boxes) {
    if (box.volume() > 0) sorted.push_back(&box);
  }
  std::ranges::sort(sorted, {}, [](const Box* box) { return box->begin[0]; });
  for (size_t i = 0; i < sorted.size(); ++i) {
    for (size_t j = i + 1; j < sorted.size() && sorted[j]->begin[0] < sorted[i]->end[0]; ++j) {
      Extents begin{};
      Extents end{};
      if (intersect(*sorted[i], *sorted[j], begin, end)) {
        return format("parts {} and {} overlap", sorted[i]->text(), sorted[j]->text());
      }
    }
  }
  return "";  // disjoint, and as many elements as there are
}

bool share_elements(const Box& a, const Box& b) {
  Extents begin{};
  Extents end{};
  return intersect(a, b, begin, end);
}

void for_each_shared_run(const Box& from, const Box& to, FunctionRef<void(const SharedRun&)> run) {
  const int rank = from.begin.rank();
  PHX_CHECK(to.begin.rank() == rank, "boxes {} and {}", from.text(), to.text());
  Extents begin{};
  Extents end{};
  if (!intersect(from, to, begin, end)) return;

  // Dimensions behind `inner` are whole in both boxes, so that a run goes on through them.
  int inner = std::max(0, rank - 1);
  while (inner > 0 && from.begin[inner] == to.begin[inner] && from.end[inner] == to.end[inner]) --inner;
  int64_t count = 1;
  for (int d = inner; d < rank; ++d) count *= end[static_cast<size_t>(d)] - begin[static_cast<size_t>(d)];

  Extents index = begin;
  for (;;) {
    run({place_in(from, index), place_in(to, index), count});
    int d = inner - 1;
    for (; d >= 0; --d) {
      const auto i = static_cast<size_t>(d);
      if (++index[i] < end[i]) break;
      index[i] = begin[i];
    }
    if (d < 0) return;
  }
}

}  // namespace phalanx
