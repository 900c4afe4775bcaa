#include "phalanx/ops/swiglu_linear.h"

#include "phalanx/ops/few_rows.h"
#include "phalanx/ops/grouped_wgmma.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx {
namespace {

// On a GPU, and whether it was done. Tiles of 128 rows and features keep it busy from some for each of its
// processors on; fewer are left to the library, which has smaller ones.
bool multiply_and_gate(const Tensor& a, const Tensor& x, const Tensor& w, const Tensor& b,
                       const RowNorm& norm) {
  constexpr int64_t kTile = 128 * 128;
  constexpr int64_t kTiles = 4 * 132;
  if constexpr (kHaveCuda) {
    if (cuda::multiply_few_rows_swiglu(a, x, w, b, norm)) return true;
    return !b.defined() && !norm.w_K.defined() && a.numel() >= kTiles * kTile &&
           cuda::wgmma_nt_swiglu(a, x, w);
  }
  return false;
}

}  // namespace

Tensor linear_swiglu(const Tensor& x, const Tensor& w, const Tensor& b, const RowNorm& norm) {
  PHX_CHECK(w.rows() % 2 == 0, "the halves of a product with {}", w.shape());
  if (x.on_cuda() && x.dtype() == DType::bf16) {
    const Tensor a = Tensor::empty({x.rows(), w.rows() / 2}, x.dtype(), x.device());
    if (multiply_and_gate(a, x, w, b, norm)) return a;
  }
  if (norm.w_K.defined()) return linear_swiglu(rmsnorm(x, norm.w_K, norm.eps).y_TD, w, b);
  const Tensor gate_up = Tensor::empty({x.rows(), w.rows()}, x.dtype(), x.device());
  linear_into(gate_up, x, w, b);
  return swiglu(all_rows(gate_up)).data;
}

}  // namespace phalanx
