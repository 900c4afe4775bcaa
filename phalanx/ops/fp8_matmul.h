// Products in FP8 (DeepSeek-V3 technical report, 2024, section 3.3.2): sums over 128 terms in f8e4m3, each
// scaled and added in f32.
#pragma once

#include "phalanx/ops/fp8.h"
#include "phalanx/ops/matmul.h"

namespace phalanx {

// y [M, N] (+)= Σ over groups g of 128 terms, in their order, of
//
//   (Σ over k in g of a.q[m, k] · b.q[n, k]) · (a's scale of (g, m) · b's scale of g and n),
//
// y of f32 or bf16. Outer sums are in f32 and rounded once, after y's old value is added. Inner ones are in
// f32 on the CPU. On a GPU (sm_90) they are the tensor cores', which cut each 32 terms and what was summed
// before them to 13 bits below the largest of them, and K is a multiple of kTermPad (Error).

/// Forward and the input's gradient: b [N, K] has scales by blocks.
void fp8_matmul_nt_into(Tensor y_MN, const Fp8Lines& a_MK, const Fp8Blocks& b_NK, Into into);

/// A weight's gradient: a and b are columns, of dy and x, with scales by lines.
void fp8_matmul_nt_into(Tensor y_MN, const Fp8Lines& a_MK, const Fp8Lines& b_NK, Into into);

}  // namespace phalanx
