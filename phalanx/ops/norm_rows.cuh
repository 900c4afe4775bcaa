// Rows that a team of threads holds in registers, for norms: read once, summed over the team, written once.
#pragma once

#include "phalanx/ops/column_sums.cuh"

namespace phalanx::cuda {

/// What one thread has of a row of `width` elements: P packs of N, a team's threads apart. f(p, i) is called
/// for each pack p that begins at a column i of the row.
template <int N, int P>
struct RowPacks {
  int64_t end;  // 0: no row

  template <class F>
  __device__ void each(F&& f) const {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int64_t i = (int64_t{threadIdx.x} + int64_t{p} * blockDim.x) * N;
      if (i < end) f(p, i);
    }
  }
  template <class T>
  __device__ void load_row(const T* row, Pack<T, N> (&to)[P]) const {
    each([&](int p, int64_t i) { to[p] = load<T, N>(row + i); });
  }
  /// f(p, k) for each element k of each pack.
  template <class F>
  __device__ void each_element(F&& f) const {
    each([&](int p, int64_t) {
#pragma unroll
      for (int k = 0; k < N; ++k) f(p, k);
    });
  }
};

/// Parts in which gradients of weights are summed, and their rows.
struct NormParts {
  static constexpr int64_t kMost = 512;

  NormParts(int64_t rows, dim3 threads)
      : rows_a_part((rows + kMost * threads.y - 1) / (kMost * threads.y)),
        blocks(blocks_for(rows, rows_a_part * threads.y)),
        count(int64_t{blocks} * threads.y) {}
  int64_t rows_a_part;
  unsigned blocks;
  int64_t count;
};

/// Calls f(threads, integral_constant P) with the threads of a block, and the packs that each has of a row.
/// Rows of 16,384 packs at most.
template <class F>
void with_row_packs(int64_t width, int64_t pack, F&& f) {
  constexpr int kWide = 32;  // its packs do not stay in registers
  const int64_t packs = (width + pack - 1) / pack;
  const dim3 threads = row_threads(packs);
  const int64_t each = (packs + threads.x - 1) / threads.x;
  PHX_CHECK(each <= kWide, "a norm of rows of {} elements on a GPU", width);
  if (each <= kInFlight) {
    f(threads, std::integral_constant<int, kInFlight>());
  } else {
    f(threads, std::integral_constant<int, kWide>());
  }
}

}  // namespace phalanx::cuda
