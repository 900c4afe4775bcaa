// Which ranks hold the same part of a parameter, within a stage and across stages.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "phalanx/comm/placement.h"

namespace phalanx {

/// A parameter as far as its holders go.
struct HeldTensor {
  std::string name;
  Shape shape;  ///< of the full tensor
  Placement placement;
};

/// For each of this rank's tensors (names differ) the world ranks that hold the same part, ascending: those
/// of its stage that `placement` gives the same part, and their neighbours along pp in every stage that has a
/// tensor of that name. So tied embeddings and experts shared by layers of two stages are one tensor.
/// Collective over pp; with pp = 1 nothing is sent. Error: two stages give one name different shapes.
std::vector<std::vector<int>> holders_of(std::span<const HeldTensor> tensors, Mesh& mesh);

}  // namespace phalanx
