// Tensor maps: how TMA finds the boxes of a tensor in global memory (sm_90 and later).
#pragma once

#include <cuda.h>

#include "phalanx/tensor/tensor.h"

namespace phalanx::cuda {

/// Bytes of a box's innermost rows, which TMA swizzles within 8 rows as wgmma reads them.
inline constexpr int64_t kBoxRowBytes = 128;

/// Boxes [1, box_rows, kBoxRowBytes] of a tensor [planes, rows, columns], or [rows, columns], of bf16 or
/// f8e4m3. Rows are whole 16 bytes, no size is 0, and the address is a multiple of 16. Elements outside are
/// read as zero.
CUtensorMap tensor_map(const Tensor& t, int box_rows);

/// Boxes [1, 1, box_columns] of a f32 tensor [rows, columns], as they are: without swizzle. The same
/// conditions.
CUtensorMap tensor_map_of_rows(const Tensor& t, int box_columns);

}  // namespace phalanx::cuda
