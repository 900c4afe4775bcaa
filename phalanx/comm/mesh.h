// Named axes over the ranks of a world.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/comm/group.h"

namespace phalanx {

/// pp pipeline, dp data, cp context, tp tensor; over the same ranks of a stage: edp, ep, etp for experts.
enum class Axis : uint8_t { pp, dp, cp, tp, edp, ep, etp };
inline constexpr int kAxes = 7;
std::string_view axis_name(Axis axis);

/// Sizes of the axes. pp·dp·cp·tp ranks; a stage's dp·cp·tp ranks are also edp·ep·etp (edp follows).
struct Layout {
  int pp = 1;
  int dp = 1;
  int cp = 1;
  int tp = 1;
  int ep = 1;
  int etp = 1;

  int ranks() const { return pp * dp * cp * tp; }
  /// "dp=2,ep=2": the axes larger than one, or "dp=1".
  std::string text() const;
  /// Reads that form. Error: an unknown axis or a size below one.
  static Layout parse(std::string_view text);
};

/// By axis.
using Coordinates = std::array<int, kAxes>;

/// One rank's coordinates and its group along each axis. Rank = ((pp · dp + d) · cp + c) · tp + t, and inside
/// a stage also (edp · ep + e) · etp + t.
class Mesh {
 public:
  /// Collective over world. Error: the layout does not fit the number of ranks.
  Mesh(Group& world, const Layout& layout);

  const Layout& layout() const { return layout_; }
  int size(Axis axis) const { return sizes_[static_cast<size_t>(axis)]; }
  int coordinate(Axis axis) const { return coordinates_[static_cast<size_t>(axis)]; }
  const Coordinates& coordinates() const { return coordinates_; }
  Coordinates coordinates_of(int world_rank) const;
  /// The world ranks of this rank's stage, ascending.
  std::vector<int> stage_ranks() const;
  /// The ranks that differ from this one along `axis` alone.
  Group& group(Axis axis) { return groups_[static_cast<size_t>(axis)]; }
  Group& world() { return world_; }
  const Group& world() const { return world_; }
  /// The group of those world ranks (ascending, this one among them), made at first use. Every member asks
  /// for its groups in the same order; `name` is for messages.
  Group& group(const std::string& name, const std::vector<int>& members);
  /// What this rank has sent and received so far in all groups of the mesh.
  Traffic traffic() const;

 private:
  Group& world_;
  Layout layout_;
  std::array<int, kAxes> sizes_{};
  std::array<int, kAxes> strides_{};  // ranks between neighbours along an axis
  Coordinates coordinates_{};
  std::vector<Group> groups_;  // by axis
  std::deque<Group> others_;
};

}  // namespace phalanx
