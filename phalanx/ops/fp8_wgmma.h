// Products of f8e4m3 by wgmma and TMA, for sm_90a (fp8_wgmma.cuh). Each kind of scales is compiled by itself.
#pragma once

#include "phalanx/ops/fp8_matmul.h"

namespace phalanx::cuda {

/// The operands of one product, on the GPU, of sizes that fit each other and TMA; none is 0.
struct Fp8Product {
  Fp8Lines a;
  Tensor b;         ///< f8e4m3 [N, K]; of experts [E, N, K]
  Tensor scales_b;  ///< by blocks or by lines
  Tensor y;         ///< f32 or bf16 [M, N]; of experts' columns [E, M, N]
  Into into = Into::replace;
};

/// Experts of a grouped product at most: its schedule lies in shared memory.
inline constexpr int64_t kMostFp8Experts = 256;

/// These give false, having done nothing, where this GPU or build has not the kernel.
bool fp8_wgmma_blocks(const Fp8Product& p);
bool fp8_wgmma_lines(const Fp8Product& p);
/// Of experts' rows, by blocks, and of columns by expert, by lines (fp8_grouped.h).
bool fp8_wgmma_grouped_nt(const Fp8Product& p, const Tensor& offsets);
bool fp8_wgmma_grouped_tn(const Fp8Product& p, const Tensor& offsets);

}  // namespace phalanx::cuda
