// Tables of the cosines and sines that rotary positions need, kept by the process. Not for others than
// rope.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace phalanx {

/// Which pairs turn how fast: pair i of d/2 by position · theta^(−2i/d).
struct Rotation {
  double theta;
  int64_t head_dim;

  friend bool operator==(const Rotation&, const Rotation&) = default;
};

/// The d/2 cosines of a position, then its d/2 sines (f32 or f64); computed in f64.
template <class T>
void compute_angles(const Rotation& rotation, int64_t position, T* out);

/// The angles of positions 0 … positions − 1, [positions, d].
template <class T>
struct AngleTable {
  Rotation rotation;
  int64_t positions;
  std::vector<T> rows;

  const T* row(int64_t position) const { return rows.data() + position * rotation.head_dim; }
};

/// A table that covers `positions`, made or extended when it is first asked for; it lives while someone holds
/// it. So many that they would need more than 64 MiB are not promised: what the table lacks must be computed.
template <class T>
std::shared_ptr<const AngleTable<T>> angle_table(const Rotation& rotation, int64_t positions);

}  // namespace phalanx
