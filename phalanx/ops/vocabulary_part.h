// A vocabulary cut over ranks.
#pragma once

#include <cstdint>

namespace phalanx {

/// Which tokens of a vocabulary a tensor's rows (an embedding table) or columns (logits) stand for: first,
/// first + 1, … With `all` 0 they are the whole vocabulary.
struct VocabularyPart {
  int64_t first = 0;
  int64_t all = 0;  ///< tokens of the vocabulary

  bool is_whole() const { return all == 0; }
  int64_t vocabulary(int64_t local) const { return is_whole() ? local : all; }
};

}  // namespace phalanx
