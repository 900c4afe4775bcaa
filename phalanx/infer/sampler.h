// Choosing the next token from its logits.
#pragma once

#include <cstdint>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

struct SamplerConfig {
  double temperature = 1;  ///< 0: greedy, ties to the lower token
  int top_k = 0;           ///< keep the k most likely tokens (ties to the lower token); 0: all
  double top_p = 1;        ///< then the fewest of them whose probabilities sum to at least p (nucleus)
  uint64_t seed = 0;
};

/// A token drawn from softmax(logits / temperature) after the cuts. logits [1, V]. The draw is a function of
/// the seed and `position`, the number of the token in its sequence: not of batch, layout or order. A logit
/// of minus infinity is never drawn. Error: a logit is NaN or infinite, all are minus infinity, or the config
/// is out of range.
int32_t sample(const Tensor& logits, const SamplerConfig& config, uint64_t position);

/// Error: what is out of range, and what it may be.
void check(const SamplerConfig& config);

}  // namespace phalanx
