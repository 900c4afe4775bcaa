#include "phalanx/ops/swiglu_linear.h"

#include "phalanx/ops/few_rows.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx {

Tensor linear_swiglu(const Tensor& x, const Tensor& w, const Tensor& b) {
  PHX_CHECK(w.rows() % 2 == 0, "the halves of a product with {}", w.shape());
  if constexpr (kHaveCuda) {
    const bool few = x.on_cuda() && x.rows() <= cuda::kFewRows;
    const Tensor a = Tensor::empty({few ? x.rows() : 0, w.rows() / 2}, x.dtype(), x.device());
    if (few && cuda::multiply_few_rows_swiglu(a, x, w, b)) return a;
  }
  const Tensor gate_up = Tensor::empty({x.rows(), w.rows()}, x.dtype(), x.device());
  linear_into(gate_up, x, w, b);
  return swiglu(all_rows(gate_up)).data;
}

}  // namespace phalanx
