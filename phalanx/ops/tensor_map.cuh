// Tensor maps: how TMA finds the boxes of a tensor in global memory (sm_90 and later).
#pragma once

#include <cuda.h>

#include "phalanx/tensor/tensor.h"

namespace phalanx::cuda {

/// Bytes of a box's innermost rows, which TMA swizzles within 8 rows as wgmma reads them.
inline constexpr int64_t kBoxRowBytes = 128;

/// Boxes [1, box_rows, kBoxRowBytes] of a bf16 tensor [planes, rows, columns], or [rows, columns]. Columns
/// are a multiple of 8, no size is 0, and the address is a multiple of 16. Elements outside are read as zero.
CUtensorMap tensor_map(const Tensor& t, int box_rows);

}  // namespace phalanx::cuda
