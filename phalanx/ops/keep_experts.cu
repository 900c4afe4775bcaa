#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void keep(int64_t* choices, int64_t slots, int64_t first, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= slots) return;
  const int64_t e = choices[i] - first;
  choices[i] = e < 0 || e >= count ? -1 : e;
}

}  // namespace

void keep_experts(const Tensor& topk_idx, int64_t first, int64_t count) {
  if (topk_idx.numel() == 0) return;
  keep<<<blocks_for(topk_idx.numel(), kThreads), kThreads, 0, current_stream().native()>>>(
      topk_idx.device_data<int64_t>(), topk_idx.numel(), first, count);
  check_launch("keep_experts");
}

}  // namespace phalanx::cuda
