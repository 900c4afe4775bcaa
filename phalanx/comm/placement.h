// How one tensor lies on a mesh.
#pragma once

#include <span>
#include <vector>

#include "phalanx/comm/mesh.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Dimension `dim` is cut over `axis` into runs of equal length, in coordinate order.
struct Shard {
  Axis axis;
  int dim;
  /// So many runs, a divisor of the axis: as many neighbours along it share one (of KV heads there may be
  /// fewer than ranks). 0: one for each coordinate.
  int parts = 0;
  /// Runs of ⌈n / parts⌉, the last ones shorter or empty: for a vocabulary that does not divide.
  bool uneven = false;
  friend bool operator==(const Shard&, const Shard&) = default;
};

/// The shards of a tensor; it is replicated along every other axis.
using Placement = std::vector<Shard>;

/// The part of a full tensor that this rank holds: [begin, end) of every dimension.
struct LocalSlice {
  Shape full;
  Shape local;
  std::array<int64_t, Shape::kMaxRank> begin{};

  /// The index in the full tensor of element `i` of the local one (both row-major).
  int64_t global_index(int64_t i) const;
};
/// The part of a tensor that no axis cuts.
inline LocalSlice whole_slice(const Shape& full) { return {.full = full, .local = full, .begin = {}}; }
/// Elements [begin, end) of the local part, as it lies in memory, in few boxes, in their order in memory.
std::vector<LocalSlice> boxes_of_range(const LocalSlice& slice, int64_t begin, int64_t end);
/// Some elements of a box, neighbours in memory: rows of `columns`, of which row r begins at index
/// first + r · step of the full tensor.
struct StridedRows {
  int64_t first = 0;
  int64_t rows = 1;
  int64_t columns = 1;
  int64_t step = 0;
};
/// A box's elements, in their order in memory, in as few as come from cuts of its last dimensions.
std::vector<StridedRows> strided_rows(const LocalSlice& box);
/// Error when an axis does not divide its dimension; `name` is the tensor's, for the message.
LocalSlice local_slice(std::string_view name, const Shape& full, const Placement& placement,
                       const Mesh& mesh);

/// The world ranks of this rank's stage that hold the same part as it, ascending.
std::vector<int> holders(const Placement& placement, const Mesh& mesh);

}  // namespace phalanx
