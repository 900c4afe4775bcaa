// Grouped products of bf16 by wgmma and TMA, for sm_90a (grouped_wgmma.cuh). Each is compiled by itself.
#pragma once

#include <cstdint>

#include "phalanx/ops/matmul.h"

namespace phalanx::cuda {

/// The operands of one grouped product, on the GPU, of sizes that fit each other.
struct GroupedProduct {
  Tensor a;        ///< x [R, K]; of tn: dy [R, M]
  Tensor b;        ///< w [E, N, K] of nt, [E, K, N] of nn; of tn: x [R, N]
  Tensor c;        ///< y [R, N]; of tn: dw [E, M, N]
  Tensor offsets;  ///< i64 [E + 1]
  Into into = Into::replace;
};

/// More experts than this have no schedule in shared memory.
inline constexpr int64_t kMostGroupedExperts = 512;

/// These give false, having done nothing, where this GPU or build has not the kernel.
bool grouped_wgmma_nt(const GroupedProduct& p);
bool grouped_wgmma_nn(const GroupedProduct& p);
/// Into f32, or bf16.
bool grouped_wgmma_tn_f32(const GroupedProduct& p);
bool grouped_wgmma_tn_bf16(const GroupedProduct& p);

/// a [M, F] = silu(gate) · up of bf16, where those are the halves of x [M, K] · w [2F, K]ᵀ, which are not
/// rounded. False also unless F and K are whole 16 bytes, and the addresses, and nothing is empty.
bool wgmma_nt_swiglu(const Tensor& a_MF, const Tensor& x_MK, const Tensor& w);

}  // namespace phalanx::cuda
