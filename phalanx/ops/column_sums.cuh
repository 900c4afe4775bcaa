// Sums down the columns of a matrix, for gradients of biases and norms: parts by rows, each in a fixed order,
// then the parts.
#pragma once

#include "phalanx/ops/cuda_kernels.cuh"

namespace phalanx::cuda {

/// Threads that share a column of parts.
inline constexpr int kColumnTeam = 16;

/// to[i] += Σ over parts [count, width] each `stride` behind the last, in f64.
template <class P, class T>
__global__ void add_parts_kernel(const P* parts, T* to, int64_t count, int64_t stride, int64_t width) {
  __shared__ double sums[kColumnTeam][kWarp];
  const int64_t i = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  double sum = 0;
  if (i < width) {
    for (int64_t p = threadIdx.y; p < count; p += kColumnTeam) {
      sum += static_cast<double>(parts[p * stride + i]);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || i >= width) return;
  for (int y = 1; y < kColumnTeam; ++y) sum += sums[y][threadIdx.x];
  to[i] = narrow<T>(static_cast<Arithmetic<T>>(static_cast<double>(widen(to[i])) + sum));
}

/// to [width] += the sums of the columns of parts [count, ≥ first + width] from `first` on. What was summed
/// is of T, parts are in its arithmetic, `to` is in either.
template <class T>
void add_parts(const Tensor& to, const Tensor& parts, int64_t first = 0) {
  using P = Arithmetic<T>;
  const int64_t width = to.numel();
  visit_sum<T>(to.dtype(), [&](auto zero) {
    using G = decltype(zero);
    const dim3 threads(kWarp, kColumnTeam);
    add_parts_kernel<P, G><<<blocks_for(width, kWarp), threads, 0, current_stream().native()>>>(
        parts.device_data<P>() + first, to.device_data<G>(), parts.rows(), parts.dim(1), width);
  });
  check_launch("add_parts");
}

}  // namespace phalanx::cuda
