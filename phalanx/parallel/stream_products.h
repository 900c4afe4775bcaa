// Products at the border between the stream and the inside of layers: each chunk is multiplied when it has
// come, and sent on when it is made. Without chunks, that is with one of all rows, they are plain products.
#pragma once

#include <span>

#include "phalanx/ops/gelu_linear.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/parallel/stream_chunks.h"

namespace phalanx {

/// y [M, N] (+)= x [M, K] · w, or · wᵀ: matmul_into or matmul_nt_into.
using Product = void (*)(Tensor y, const Tensor& x, const Tensor& w, Into into);

/// y[i] [T, N_i] = x · w[i], of all rows of x [T, K], which outlives the task.
Task<> multiply_gathered(GatherChunks* x, Product product, std::span<const Tensor> w,
                         std::span<const Tensor> y);

/// A weight [N, K], a bias [N], which may be empty, and the GELU behind them.
struct GeluWeights {
  Tensor w_NK;
  Tensor b_N;
  Gelu kind;
};

/// y[i] [T, N_i] = x · w[i]ᵀ + b[i], of all rows of x; b[i] may be empty.
Task<> linear_gathered(GatherChunks* x, std::span<const Tensor> w, std::span<const Tensor> b,
                       std::span<const Tensor> y);

/// The same of one w, and its GELU: out [T, N].
Task<> linear_gelu_gathered(GatherChunks* x, GeluWeights of, GeluRows out);

/// Writes and sends Σ_i x[i] · w[i], all rows of this rank's summand. Does not wait.
void multiply_and_send(ReduceChunks& sum, Product product, std::span<const Tensor> x,
                       std::span<const Tensor> w);

}  // namespace phalanx
