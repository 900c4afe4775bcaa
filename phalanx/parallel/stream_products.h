// Products at the border between the stream and the inside of layers: each chunk is multiplied when it has
// come, and sent on when it is made. Without chunks, that is with one of all rows, they are plain products.
#pragma once

#include <span>

#include "phalanx/ops/matmul.h"
#include "phalanx/parallel/stream_chunks.h"

namespace phalanx {

/// y [M, N] (+)= x [M, K] · w, or · wᵀ: matmul_into or matmul_nt_into.
using Product = void (*)(Tensor y, const Tensor& x, const Tensor& w, Into into);

/// f(the rows that have come, and what they are) until x, which outlives the task, has all rows.
template <class F>
Task<> each_chunk(GatherChunks* x, F f) {
  while (x->more()) {
    const RowRun rows = co_await x->next();
    f(rows, x->all().slice(rows.begin, rows.end));
  }
}

/// y[i] [T, N_i] = x · w[i], of all rows of x [T, K], which outlives the task.
Task<> multiply_gathered(GatherChunks* x, Product product, std::span<const Tensor> w,
                         std::span<const Tensor> y);

/// y[i] [T, N_i] = x · w[i]ᵀ + b[i], of all rows of x; b[i] may be empty.
Task<> linear_gathered(GatherChunks* x, std::span<const Tensor> w, std::span<const Tensor> b,
                       std::span<const Tensor> y);

/// Writes and sends Σ_i x[i] · w[i], all rows of this rank's summand. Does not wait.
void multiply_and_send(ReduceChunks& sum, Product product, std::span<const Tensor> x,
                       std::span<const Tensor> w);

}  // namespace phalanx
