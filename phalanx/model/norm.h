// RMSNorm and LayerNorm of the stream's rows.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "phalanx/model/layer.h"

namespace phalanx {

/// The gradient of what every rank has whole and feeds with the stream's rows: under sequence parallelism
/// each sums its own rows into it.
OverTp gradient_of_stream(const Builder& build);
/// A vector that every rank has whole, for the stream's rows.
Parameter& add_vector(const Builder& build, const std::string& name, int64_t width, Init::Kind kind);

/// What a layer norms its rows by, in place of the norm before it; without weights it cannot.
struct LeftNorm {
  std::optional<Lease> lease;
  RowNorm norm;
};

/// Normalises rows of the stream.
class Norm {
 public:
  virtual ~Norm() = default;
  virtual Task<Tensor> forward(Tensor x_TD, Tape& tape) = 0;
  /// In place of forward, where nothing is kept: it is left to the layer behind.
  virtual Task<LeftNorm> leave() { co_return LeftNorm(); }
  /// The gradient of x, plus `also` [T, D], which may be empty: what x has from elsewhere.
  virtual Task<Tensor> backward(Tensor dy_TD, Tape& tape, Tensor also_TD) = 0;
};

/// RMSNorm over rows [·, width]. Parameter NAME.w [width].
std::unique_ptr<Norm> make_rms_norm(const Builder& build, const std::string& name, int64_t width, double eps);

/// RMSNorm or LayerNorm over the width. Parameters NAME.w [D] and, for LayerNorm with bias, NAME.b [D].
std::unique_ptr<Norm> make_norm(const Builder& build, const std::string& name);

}  // namespace phalanx
