// Matrix products. M rows (tokens), N output features, K input features; weights are [N, K] as everywhere.
#pragma once

#include <cstdint>

#include "phalanx/tensor/rows.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// What a product does to the numbers where its result goes: they count, or they are overwritten.
enum class Into : uint8_t { add, replace };

/// x [M, K] · w [K, N] → [M, N]. f32 or f64, equal dtypes.
Tensor matmul(const Tensor& x_MK, const Tensor& w_KN);
/// x [M, K] · w[N, K]ᵀ → [M, N]: a linear layer's forward.
Tensor matmul_nt(const Tensor& x_MK, const Tensor& w_NK);
/// y [M, N] += x [M, K] · w [K, N]: an input's gradient where several linear layers read it.
void matmul_into(Tensor y_MN, const Tensor& x_MK, const Tensor& w_KN, Into into = Into::add);
/// y [M, N] += x [M, K] · w[N, K]ᵀ.
void matmul_nt_into(Tensor y_MN, const Tensor& x_MK, const Tensor& w_NK, Into into = Into::add);
/// y [M, N] = x [M, K] · w[N, K]ᵀ + b [N] + also [M, N]; b and `also` may be empty. On a GPU the sums are
/// part of the product.
void linear_into(Tensor y_MN, const Tensor& x_MK, const Tensor& w_NK, const Tensor& b_N,
                 const Tensor& also_MN = {});
/// dw [N, K] += dy [M, N]ᵀ · x [M, K]: a linear layer's weight gradient.
void matmul_tn_into(Tensor dw_NK, const Tensor& dy_MN, const Tensor& x_MK, Into into = Into::add);

/// Of this thread from now on: on a GPU each shape's first product times what the library proposes, with the
/// host waiting, and the fastest is taken. Bits may then differ from run to run. At first off.
void tune_products(bool on);

// The same for experts: rows grouped by expert, expert e owning rows offsets[e]…offsets[e+1]−1 (i64 [E+1])
// and weight w[e]. Experts without rows are fine; rows before offsets[0] and behind offsets[E] are left
// alone, and no expert's bits depend on the others. On a GPU offsets lie there too, and the host does not
// wait for them; operands may be bf16, and dw then f32 or bf16.

/// x [R, K], w [E, K, N] → [R, N].
Rows grouped_matmul(const Rows& x_RK, const Tensor& w_EKN, const Tensor& offsets);
/// x [R, K], w [E, N, K] → [R, N].
Rows grouped_matmul_nt(const Rows& x_RK, const Tensor& w_ENK, const Tensor& offsets);
/// dw [E, N, K] += for each expert dyᵀ · x.
void grouped_matmul_tn_into(Tensor dw_ENK, const Rows& dy_RN, const Rows& x_RK, const Tensor& offsets,
                            Into into = Into::add);

}  // namespace phalanx
