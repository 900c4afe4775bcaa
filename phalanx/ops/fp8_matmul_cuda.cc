// ops/fp8_matmul.h on a GPU: what TMA can read goes to the kernels.
#include "phalanx/base/error.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/fp8_wgmma.h"

namespace phalanx::cuda {
namespace {

template <class Kernel>
void multiply(const Fp8Product& p, const Kernel& kernel) {
  PHX_CHECK(p.y.dtype() == DType::bf16 || p.y.dtype() == DType::f32, "an FP8 product into {}",
            dtype_name(p.y.dtype()));
  if (p.y.numel() == 0) return;
  const int64_t terms = p.b.dim(1);
  if (terms == 0) {
    if (p.into == Into::replace) copy_into(p.y, Tensor::zeros(p.y.shape(), p.y.dtype(), p.y.device()));
    return;
  }
  if (terms % kTermPad != 0)
    throw Error("an FP8 product over {} terms: on a GPU they must be a multiple of {}", terms, kTermPad);
  for (const Tensor* t : {&p.a.q_RK, &p.a.scales_SR, &p.b, &p.scales_b}) {
    PHX_CHECK(reinterpret_cast<uintptr_t>(t->address()) % 16 == 0 && t->numel() > 0, "a factor {} at {}",
              t->shape(), reinterpret_cast<uintptr_t>(t->address()));
  }
  constexpr int64_t kMost = int64_t{1} << 30;  // coordinates are 32 bits
  PHX_CHECK(p.y.dim(0) < kMost && p.y.dim(1) < kMost && terms < kMost, "an FP8 product {} over {} terms",
            p.y.shape(), terms);
  if (!kernel(p)) throw Error("FP8 products need a GPU of architecture sm_90, and a build for sm_90a");
}

}  // namespace

void fp8_matmul_nt_into(const Tensor& y, const Fp8Lines& a, const Fp8Blocks& b, Into into) {
  multiply({.a = a, .b = b.q_NK, .scales_b = b.scales, .y = y, .into = into}, fp8_wgmma_blocks);
}

void fp8_matmul_nt_into(const Tensor& y, const Fp8Lines& a, const Fp8Lines& b, Into into) {
  multiply({.a = a, .b = b.q_RK, .scales_b = b.scales_SR, .y = y, .into = into}, fp8_wgmma_lines);
}

}  // namespace phalanx::cuda
