// Rows of one number an expert, a warp each: what the kernels of routing share.
//
// A block has threadIdx.y rows; lane threadIdx.x of a row has its experts lane, lane + 32, …
#pragma once

#include <limits>

#include "phalanx/ops/cuda_kernels.cuh"

namespace phalanx::cuda {

inline constexpr int kRowsOfBlock = 8;  // warps

/// Keeps a token whose scores all vanish (sigmoid) from dividing by zero.
inline constexpr double kTinyScore = 1e-20;

/// The sum over a warp, on all its lanes, in a fixed order.
template <class T>
__device__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

/// The largest of a warp, on all its lanes; NaN counts as nothing unless all are.
template <class T>
__device__ T warp_max(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(~0u, value, step);
    value = other > value ? other : value;
  }
  return value;
}

inline dim3 expert_row_threads() { return dim3(kWarp, kRowsOfBlock); }

/// The row of a warp, of kernels launched with one for each.
__device__ inline int64_t expert_row() { return int64_t{blockIdx.x} * blockDim.y + threadIdx.y; }

}  // namespace phalanx::cuda
