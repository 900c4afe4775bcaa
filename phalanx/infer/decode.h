// Generating text: the decoded token's path.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "phalanx/base/function_ref.h"
#include "phalanx/infer/kv_cache.h"
#include "phalanx/infer/sampler.h"
#include "phalanx/model/transformer.h"

namespace phalanx {

struct GenerateOptions {
  int64_t tokens = 256;  ///< to generate, at least 1
  SamplerConfig sampler;
};

struct GenerateResult {
  std::vector<int32_t> tokens;  ///< generated, without the prompt
  double seconds_to_first = 0;  ///< from the call to the first token
  double seconds = 0;           ///< all
};

/// Error: what is out of range, and what it may be.
void check(const GenerateOptions& options);

/// Continues `prompt` (at least one token). Each token is given to `on_token` as it is chosen; returning
/// false stops. When the model's context is full, the last half of it is read again as a new prompt, and
/// generation goes on.
GenerateResult generate(Transformer& model, std::span<const int32_t> prompt, const GenerateOptions& options,
                        FunctionRef<bool(int32_t token)> on_token);

}  // namespace phalanx
