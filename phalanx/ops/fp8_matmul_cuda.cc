// ops/fp8_matmul.h and the products of ops/fp8_grouped.h on a GPU: what TMA can read goes to the kernels.
#include "phalanx/base/error.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/fp8_wgmma.h"

namespace phalanx::cuda {
namespace {

// kernel(): whether there is one here.
template <class Kernel>
void multiply(const Fp8Product& p, const Kernel& kernel) {
  PHX_CHECK(p.y.dtype() == DType::bf16 || p.y.dtype() == DType::f32, "an FP8 product into {}",
            dtype_name(p.y.dtype()));
  const int64_t terms = p.a.q_RK.dim(1);
  if (terms % kTermPad != 0)
    throw Error("an FP8 product over {} terms: on a GPU they must be a multiple of {}", terms, kTermPad);
  for (const Tensor* t : {&p.a.q_RK, &p.a.scales_SR, &p.b, &p.scales_b}) {
    PHX_CHECK(reinterpret_cast<uintptr_t>(t->address()) % 16 == 0 && t->numel() > 0, "a factor {} at {}",
              t->shape(), reinterpret_cast<uintptr_t>(t->address()));
  }
  constexpr int64_t kMost = int64_t{1} << 30;  // coordinates are 32 bits
  const int64_t columns = p.y.dim(p.y.shape().rank() - 1);
  PHX_CHECK(p.y.numel() / columns < kMost && columns < kMost && terms < kMost,
            "an FP8 product {} over {} terms", p.y.shape(), terms);
  if (!kernel()) throw Error("FP8 products need a GPU of architecture sm_90, and a build for sm_90a");
}

template <class Kernel>
void multiply_one(const Fp8Product& p, const Kernel& kernel) {
  if (p.y.numel() == 0) return;
  if (p.b.dim(1) == 0) {
    if (p.into == Into::replace) zero_into(p.y);
    return;
  }
  multiply(p, [&] { return kernel(p); });
}

template <class Kernel>
void multiply_grouped(const Fp8Product& p, const Tensor& offsets, const Kernel& kernel) {
  if (p.y.numel() == 0 || offsets.numel() == 1) return;
  if (offsets.numel() - 1 > kMostFp8Experts)
    throw Error("FP8 products of {} experts: a GPU has {} at most", offsets.numel() - 1, kMostFp8Experts);
  if (p.a.q_RK.dim(1) == 0) throw Error("FP8 products of experts over no terms");
  multiply(p, [&] { return kernel(p, offsets); });
}

}  // namespace

void fp8_matmul_nt_into(const Tensor& y, const Fp8Lines& a, const Fp8Blocks& b, Into into) {
  multiply_one({.a = a, .b = b.q_NK, .scales_b = b.scales, .y = y, .into = into}, fp8_wgmma_blocks);
}

void fp8_matmul_nt_into(const Tensor& y, const Fp8Lines& a, const Fp8Lines& b, Into into) {
  multiply_one({.a = a, .b = b.q_RK, .scales_b = b.scales_SR, .y = y, .into = into}, fp8_wgmma_lines);
}

void fp8_grouped_matmul_nt_into(const Tensor& y, const Fp8Lines& x, const Fp8Blocks& w,
                                const Tensor& offsets) {
  multiply_grouped({.a = x, .b = w.q_NK, .scales_b = w.scales, .y = y, .into = Into::replace}, offsets,
                   fp8_wgmma_grouped_nt);
}

void fp8_grouped_matmul_tn_into(const Tensor& dw, const Fp8Lines& dy, const Fp8Lines& x,
                                const Tensor& offsets, Into into) {
  multiply_grouped({.a = dy, .b = x.q_RK, .scales_b = x.scales_SR, .y = dw, .into = into}, offsets,
                   fp8_wgmma_grouped_tn);
}

}  // namespace phalanx::cuda
