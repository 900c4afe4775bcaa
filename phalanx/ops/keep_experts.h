// Choices of experts, from all of them to those of one rank.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// topk_idx i64 [R, K], in place: experts first…first+count−1 become 0…count−1, all others and −1 become −1.
void keep_experts(const Tensor& topk_idx_RK, int64_t first, int64_t count);

}  // namespace phalanx
