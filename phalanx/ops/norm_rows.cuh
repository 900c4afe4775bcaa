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

/// Parts in which gradients of weights are summed, one a block, and the rows of each of its teams.
struct NormParts {
  static constexpr int64_t kMost = 1024;

  NormParts(int64_t rows, dim3 threads)
      : rows_a_team((rows + kMost * threads.y - 1) / (kMost * threads.y)),
        blocks(blocks_for(rows, rows_a_team * threads.y)) {}
  int64_t rows_a_team;
  unsigned blocks;
};

/// part [width] = what the block's teams have of each column, team by team. All threads call it; `shared` has
/// room for a row where there are several teams.
template <int N, int P, class A>
__device__ void store_part(const RowPacks<N, P>& columns, const Pack<A, N> (&mine)[P], A* shared, A* part) {
  const auto at = [&](A* row, int64_t i) { return reinterpret_cast<Pack<A, N>*>(row + i); };
  for (int team = 0; team + 1 < static_cast<int>(blockDim.y); ++team) {
    if (team == static_cast<int>(threadIdx.y)) {
      columns.each([&](int p, int64_t i) {
        Pack<A, N> sum = mine[p];
        if (team > 0) {
          for (int k = 0; k < N; ++k) sum.v[k] += at(shared, i)->v[k];
        }
        *at(shared, i) = sum;
      });
    }
    __syncthreads();
  }
  if (threadIdx.y + 1 < blockDim.y) return;
  columns.each([&](int p, int64_t i) {
    Pack<A, N> sum = mine[p];
    if (blockDim.y > 1) {
      for (int k = 0; k < N; ++k) sum.v[k] += at(shared, i)->v[k];
    }
    store(part + i, sum);
  });
}

/// Bytes of shared memory for `rows` calls of store_part.
template <class A>
size_t part_bytes(dim3 threads, int64_t width, int rows) {
  return threads.y > 1 ? static_cast<size_t>(rows * width) * sizeof(A) : 0;
}

/// Calls f(threads, integral_constant P) with the threads of a block, and the packs that each has of a row:
/// one, if a block can have so many threads, so that registers are left for many warps. Rows of 16,384 packs
/// at most.
template <class F>
void with_row_packs(int64_t width, int64_t pack, F&& f) {
  constexpr int kWide = 32;  // its packs do not stay in registers
  constexpr int64_t kShort = 128;
  const int64_t packs = (width + pack - 1) / pack;
  const auto team = std::clamp<int64_t>((packs + kWarp - 1) / kWarp * kWarp, kWarp, kMostThreads);
  const dim3 threads(static_cast<unsigned>(team), static_cast<unsigned>(std::max<int64_t>(1, kShort / team)));
  const int64_t each = (packs + team - 1) / team;
  PHX_CHECK(each <= kWide, "a norm of rows of {} elements on a GPU", width);
  if (each == 1) {
    f(threads, std::integral_constant<int, 1>());
  } else if (each <= kInFlight) {
    f(threads, std::integral_constant<int, kInFlight>());
  } else {
    f(threads, std::integral_constant<int, kWide>());
  }
}

}  // namespace phalanx::cuda
