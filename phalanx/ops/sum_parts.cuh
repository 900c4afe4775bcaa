// What blocks have summed, put together.
#pragma once

#include "phalanx/ops/cuda_kernels.cuh"

namespace phalanx::cuda {

/// One block: the sum of all parts, in an order that their number gives.
template <int kThreads>
__global__ void sum_parts_kernel(const double* parts, int64_t count, double* sum) {
  __shared__ TeamScratch scratch;
  double mine = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) mine += parts[i];
  mine = team_reduce(mine, scratch, Sum{});
  if (threadIdx.x == 0) *sum = mine;
}

/// sum = Σ parts, f64 [1] from f64 [n], queued on the calling thread's stream.
inline void sum_parts(const Tensor& parts, const Tensor& sum) {
  sum_parts_kernel<kMostThreads><<<1, kMostThreads, 0, current_stream().native()>>>(
      parts.device_data<double>(), parts.numel(), sum.device_data<double>());
  check_launch("a sum");
}

}  // namespace phalanx::cuda
