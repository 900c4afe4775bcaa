#include "phalanx/ops/keep_experts.h"

#include "phalanx/ops/cuda_ops.h"

namespace phalanx {

void keep_experts(const Tensor& topk_idx, int64_t first, int64_t count) {
  if constexpr (kHaveCuda) {
    if (topk_idx.on_cuda()) return cuda::keep_experts(topk_idx, first, count);
  }
  for (int64_t& e : topk_idx.span<int64_t>()) {
    e -= first;
    if (e < 0 || e >= count) e = -1;
  }
}

}  // namespace phalanx
