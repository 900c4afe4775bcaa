// How long ops take at given shapes, beside the machine's speeds.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "phalanx/base/trace.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Shapes of a decoder's ops: T tokens in sequences of `context`, D model width, F MLP width, V vocabulary, E
/// experts of width F/K, K of them a token.
struct OpShapes {
  int64_t tokens = 1024;
  int64_t context = 256;
  int64_t width = 384;
  int heads = 6;
  int64_t mlp_width = 1536;
  int64_t vocabulary = 8192;
  int experts = 8;
  int top_k = 2;
};

struct OpTime {
  std::string op;     ///< as traces name it
  std::string shape;  ///< of its operands
  TraceKind kind = TraceKind::other;
  int64_t work = 0;    ///< operations or bytes, by kind (base/trace.h)
  double seconds = 0;  ///< the median of a call
  bool counts_operations() const { return kind == TraceKind::product || kind == TraceKind::attention; }
  /// Operations or bytes a second.
  double rate() const { return static_cast<double>(work) / seconds; }
};

/// The ops of training, one by one, with the calling rank's threads, on random tensors of `dtype` (f32 or
/// f64). Each runs for about `seconds`. `on_time` sees each as it ends; may be empty. Error: sizes that do
/// not divide.
std::vector<OpTime> measure_ops(const OpShapes& shapes, DType dtype, double seconds,
                                const std::function<void(const OpTime&)>& on_time);

}  // namespace phalanx
