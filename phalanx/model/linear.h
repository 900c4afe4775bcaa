// A dense linear layer and the two norms.
#pragma once

#include <memory>
#include <string>

#include "phalanx/model/config.h"
#include "phalanx/model/layer.h"
#include "phalanx/parallel/parameter.h"

namespace phalanx {

struct LinearConfig {
  int64_t in = 0;
  int64_t out = 0;
  bool bias = false;
  double init_std = 0.02;
};

/// y = x Wᵀ + b. Parameters NAME.w [out, in] and, if asked for, NAME.b [out].
class Linear {
 public:
  Linear(ParameterStore& store, const std::string& name, const LinearConfig& config);
  Task<Tensor> forward(Tensor x, Tape& tape);
  /// The gradient of x; where there is a `sum`, it is added to that.
  Task<Tensor> backward(Tensor dy, Tape& tape, Tensor sum = {});

 private:
  Parameter& w_;
  Parameter* b_;  // or null
};

/// RMSNorm or LayerNorm over the width. Parameters NAME.w [D] and, for LayerNorm with bias, NAME.b [D].
std::unique_ptr<Layer> make_norm(ParameterStore& store, const std::string& name, const ModelConfig& config);

}  // namespace phalanx
