#include "phalanx/comm/placement.h"

#include <algorithm>

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

LocalSlice local_slice(std::string_view name, const Shape& full, const Placement& placement,
                       const Mesh& mesh) {
  LocalSlice slice{.full = full};
  std::array<int64_t, Shape::kMaxRank> extents{};
  std::ranges::copy(full.extents(), extents.begin());
  for (const Shard& shard : placement) {
    const auto d = static_cast<size_t>(shard.dim);
    const int parts = mesh.size(shard.axis);
    if (extents[d] % parts != 0) {
      throw Error("tensor {}: {} = {} does not divide dimension {} of {}", name, axis_name(shard.axis), parts,
                  shard.dim, full);
    }
    extents[d] /= parts;
    slice.begin[d] += mesh.coordinate(shard.axis) * extents[d];
  }
  slice.local = Shape(std::span(extents).first(static_cast<size_t>(full.rank())));
  return slice;
}

bool is_expert_placement(const Placement& placement) {
  return std::ranges::any_of(placement,
                             [](const Shard& s) { return s.axis == Axis::ep || s.axis == Axis::etp; });
}

}  // namespace phalanx
