// Products at the border between the stream and the inside of layers: each chunk is multiplied when it has
// come, and sent on when it is made. Without chunks, that is with one of all rows, they are plain products.
#pragma once

#include <span>

#include "phalanx/ops/linears.h"
#include "phalanx/parallel/stream_chunks.h"

namespace phalanx {

/// f(the rows that have come, and what they are) until x, which outlives the task, has all rows.
template <class F>
Task<> each_chunk(GatherChunks* x, F f) {
  while (x->more()) {
    const RowRun rows = co_await x->next();
    f(rows, x->all().slice(rows.begin, rows.end));
  }
}

/// y[i] [T, N_i] = x · w[i]ᵀ + b[i], of all rows of x, normed at first if `norm` has weights; b[i] may be
/// empty.
Task<> linear_gathered(GatherChunks* x, RowNorm norm, std::span<const Tensor> w, std::span<const Tensor> b,
                       std::span<const Tensor> y);

/// Each chunk of a sum is written by multiply(its place, the rows that it is), and sent. Does not wait.
template <class F>
void multiply_and_send(ReduceChunks& sum, F multiply) {
  for (; sum.more(); sum.send()) multiply(sum.part(), sum.rows());
}

}  // namespace phalanx
