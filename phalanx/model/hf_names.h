// Where the weights of our parameters stand in Hugging Face's checkpoints.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "phalanx/model/hf_config.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Rows of a parameter that come from one tensor of theirs. A parameter's rows are those of the matrix of its
/// last dimension, [numel / last, last]; those of a vector are its elements.
struct HfPiece {
  std::string tensor;          // their name
  std::vector<int64_t> shape;  // theirs
  int64_t begin = 0;           // of our rows: [begin, begin + rows)
  int64_t rows = 0;
  int64_t first = 0;  // of their rows
  int64_t first_column = 0;
  bool transposed = false;  // their rows are columns
  /// Heads of so many rows, of which those from `still` on turn by pairs that stand side by side there, half
  /// a head apart here; 0: none do.
  int64_t head = 0;
  int64_t still = 0;

  /// Their row of our row begin + i.
  int64_t their_row(int64_t i) const;
};

/// Tensors of theirs that are copies of others, copy first: each depth of multi-token prediction has the
/// embedding and the output head once more.
std::vector<std::pair<std::string, std::string>> hf_copies(const ModelConfig& config);

/// All pieces of the parameter, or the router's bias, of that name and full shape, ascending. `config` is of
/// the family.
std::vector<HfPiece> hf_pieces(const ModelConfig& config, HfFamily family, const std::string& name,
                               const Shape& shape);

}  // namespace phalanx
