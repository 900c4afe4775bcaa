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
