#include "phalanx/comm/placement.h"

#include <algorithm>

#include "phalanx/base/check.h"
#include "phalanx/base/error.h"

namespace phalanx {

int64_t LocalSlice::global_index(int64_t i) const {
  int64_t index = 0;
  int64_t stride = 1;
  for (int d = full.rank() - 1; d >= 0; --d) {
    index += (begin[static_cast<size_t>(d)] + i % local[d]) * stride;
    i /= local[d];
    stride *= full[d];
  }
  return index;
}

namespace {

// Appends the boxes of elements [begin, end) of `box` cut to index `box.begin` in all dimensions before
// `dim`.
void append_boxes(const LocalSlice& box, int dim, int64_t begin, int64_t end, std::vector<LocalSlice>& out) {
  if (begin == end) return;
  int64_t inner = 1;
  for (int d = dim + 1; d < box.local.rank(); ++d) inner *= box.local[d];
  const auto indices = [&](int64_t from, int64_t to) {
    LocalSlice part = box;
    std::array<int64_t, Shape::kMaxRank> extents{};
    std::ranges::copy(box.local.extents(), extents.begin());
    extents[static_cast<size_t>(dim)] = to - from;
    part.local = Shape(std::span(extents).first(static_cast<size_t>(box.local.rank())));
    part.begin[static_cast<size_t>(dim)] += from;
    return part;
  };
  const int64_t first_whole = (begin + inner - 1) / inner;
  const int64_t end_whole = end / inner;
  if (first_whole > end_whole) {  // within one index
    append_boxes(indices(end_whole, first_whole), dim + 1, begin % inner, end % inner, out);
    return;
  }
  if (begin % inner != 0) {
    append_boxes(indices(first_whole - 1, first_whole), dim + 1, begin % inner, inner, out);
  }
  if (first_whole < end_whole) out.push_back(indices(first_whole, end_whole));
  if (end % inner != 0) append_boxes(indices(end_whole, end_whole + 1), dim + 1, 0, end % inner, out);
}

int parts_of(const Shard& shard, const Mesh& mesh) {
  const int size = mesh.size(shard.axis);
  const int parts = shard.parts > 0 ? shard.parts : size;
  PHX_CHECK(size % parts == 0, "{} parts over {} = {}", parts, axis_name(shard.axis), size);
  return parts;
}

// Which part lies at those coordinates.
int64_t part_at(const Shard& shard, const Mesh& mesh, const Coordinates& coordinates) {
  const int sharers = mesh.size(shard.axis) / parts_of(shard, mesh);
  return coordinates[static_cast<size_t>(shard.axis)] / sharers;
}

}  // namespace

std::vector<LocalSlice> boxes_of_range(const LocalSlice& slice, int64_t begin, int64_t end) {
  std::vector<LocalSlice> boxes;
  if (slice.local.rank() == 0) {
    if (begin < end) boxes.push_back(slice);
  } else {
    append_boxes(slice, 0, begin, end, boxes);
  }
  return boxes;
}

std::vector<StridedRows> strided_rows(const LocalSlice& box) {
  if (box.local.numel() == 0) return {};
  StridedRows rows;
  // Whole dimensions and the first one that is cut are neighbours; those before it are rows, up to the next.
  int d = box.local.rank();
  const auto take = [&](int64_t& count) {
    while (d > 0) {
      --d;
      count *= box.local[d];
      if (box.local[d] != box.full[d]) return;
    }
  };
  take(rows.columns);
  rows.step = 1;
  for (int i = d; i < box.full.rank(); ++i) rows.step *= box.full[i];
  take(rows.rows);
  const int64_t each = rows.rows * rows.columns;
  std::vector<StridedRows> all;
  for (int64_t i = 0; i < box.local.numel(); i += each) {
    rows.first = box.global_index(i);
    all.push_back(rows);
  }
  return all;
}

LocalSlice local_slice(std::string_view name, const Shape& full, const Placement& placement,
                       const Mesh& mesh) {
  LocalSlice slice{.full = full};
  std::array<int64_t, Shape::kMaxRank> extents{};
  std::ranges::copy(full.extents(), extents.begin());
  for (const Shard& shard : placement) {
    const auto d = static_cast<size_t>(shard.dim);
    const int parts = parts_of(shard, mesh);
    if (extents[d] % parts != 0 && !shard.uneven) {
      throw Error("tensor {}: {} = {} does not divide dimension {} of {}", name, axis_name(shard.axis), parts,
                  shard.dim, full);
    }
    const int64_t run = (extents[d] + parts - 1) / parts;
    const int64_t begin = std::min(part_at(shard, mesh, mesh.coordinates()) * run, extents[d]);
    slice.begin[d] += begin;
    extents[d] = std::min(run, extents[d] - begin);
  }
  slice.local = Shape(std::span(extents).first(static_cast<size_t>(full.rank())));
  return slice;
}

std::vector<int> holders(const Placement& placement, const Mesh& mesh) {
  std::vector<int> ranks = mesh.stage_ranks();
  std::erase_if(ranks, [&](int rank) {
    const Coordinates there = mesh.coordinates_of(rank);
    return std::ranges::any_of(placement, [&](const Shard& shard) {
      return part_at(shard, mesh, there) != part_at(shard, mesh, mesh.coordinates());
    });
  });
  return ranks;
}

}  // namespace phalanx
