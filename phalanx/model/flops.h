// How much arithmetic a model costs, for shares of the machine's speed.
#pragma once

#include "phalanx/model/config.h"

namespace phalanx {

/// Operations (a multiply-add is two) of one training step, forward and backward, a token. All formulas count
/// what PaLM's appendix B counts: 6 for each parameter of a product that a token passes through (the output
/// head is one, the embedding look-up is not), and 12·layers·H·d·T for attention over the whole context,
/// causal or not (6·layers·H·(d + e)·T where values have e columns). Each depth of multi-token prediction
/// adds a block and an output head.
struct TokenFlops {
  double products = 0;   ///< 6 · parameters used by a token
  double attention = 0;  ///< 6 · blocks · heads · (head_dim + value_dim) · context
  double total() const { return products + attention; }
};
/// `config` is resolved.
TokenFlops training_flops_per_token(const ModelConfig& config);

/// Parameters in all, and those that a token passes through in training: fewer with experts; those of experts
/// that layers share count in each of them.
struct ParameterCount {
  int64_t total = 0;
  int64_t active = 0;
};
ParameterCount count_parameters(const ModelConfig& config);

/// Those of the rank of a layout that has most: matrices are cut over tp, experts over ep and etp; norms,
/// routers and what makes latents are whole.
int64_t count_local_parameters(const ModelConfig& config, const Layout& layout);

}  // namespace phalanx
