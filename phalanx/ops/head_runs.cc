#include "phalanx/ops/head_runs.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx {
namespace {

constexpr int64_t kRows = 64;  // of one task

// Runs that so many heads are cut into.
int runs_of(int heads, int ranks) {
  const int runs = std::min(heads, ranks);
  PHX_CHECK(runs > 0 && heads % runs == 0 && ranks % runs == 0, "{} heads over {} ranks", heads, ranks);
  return runs;
}

// Of the run that a rank takes.
int64_t first_column(int64_t rank, int runs, int ranks, int64_t width) { return rank * runs / ranks * width; }

}  // namespace

Tensor pack_heads(const Tensor& x, int heads, int ranks) {
  const int runs = runs_of(heads, ranks);
  PHX_CHECK(x.shape().rank() == 2 && x.dim(1) % heads == 0, "{} heads in rows of {}", heads, x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::pack_heads(x, runs, ranks);
  }
  const int64_t width = x.dim(1) / runs;
  const Tensor out = Tensor::empty({ranks * x.rows(), width}, x.dtype());
  const TraceSpan span(TraceKind::elementwise, "pack_heads", 2 * out.bytes());
  const size_t item = dtype_size(x.dtype());
  const size_t bytes = static_cast<size_t>(width) * item;
  parallel_for(out.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % x.rows() * x.dim(1) + first_column(i / x.rows(), runs, ranks, width);
      std::memcpy(out.raw() + static_cast<size_t>(i) * bytes, x.raw() + static_cast<size_t>(from) * item,
                  bytes);
    }
  });
  return out;
}

Tensor unpack_heads(const Tensor& y, int heads, int ranks) {
  const int runs = runs_of(heads, ranks);
  PHX_CHECK(y.shape().rank() == 2 && y.rows() % ranks == 0, "rows of {} ranks: {}", ranks, y.shape());
  if constexpr (kHaveCuda) {
    if (y.on_cuda()) return cuda::unpack_heads(y, runs, ranks);
  }
  const int64_t rows = y.rows() / ranks;
  const int64_t width = y.dim(1);
  const Tensor out = Tensor::empty({rows, width * runs}, y.dtype());
  const TraceSpan span(TraceKind::elementwise, "unpack_heads", 2 * y.bytes());
  visit_float(y.dtype(), [&](auto t) {
    using T = decltype(t);
    parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
      for (int rank = 0; rank < ranks; ++rank) {
        const int64_t first = first_column(rank, runs, ranks, width);
        const bool adds = rank > 0 && first == first_column(rank - 1, runs, ranks, width);
        for (int64_t i = begin; i < end; ++i) {
          const T* from = y.data<const T>() + (rank * rows + i) * width;
          T* to = out.data<T>() + i * out.dim(1) + first;
          for (int64_t k = 0; k < width; ++k) to[k] = adds ? to[k] + from[k] : from[k];
        }
      }
    });
  });
  return out;
}

}  // namespace phalanx
