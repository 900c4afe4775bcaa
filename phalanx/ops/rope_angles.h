// Tables of the cosines and sines that rotary positions need, kept by the process. Not for others than
// rope.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "phalanx/ops/rope.h"

namespace phalanx {

/// The r/2 cosines of a position, then its r/2 sines (f32 or f64), times the factor; computed in f64.
template <class T>
void compute_angles(const Rotation& rotation, int64_t position, T* out);

/// The angles of positions 0 … positions − 1, [positions, r].
template <class T>
struct AngleTable {
  Rotation rotation;
  int64_t positions;
  std::vector<T> rows;

  const T* row(int64_t position) const { return rows.data() + position * rotation.columns(); }
};

/// A table that covers `positions`, made or extended when it is first asked for; it lives while someone holds
/// it. So many that they would need more than 64 MiB are not promised: what the table lacks must be computed.
template <class T>
std::shared_ptr<const AngleTable<T>> angle_table(const Rotation& rotation, int64_t positions);

}  // namespace phalanx
