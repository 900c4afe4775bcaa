#include "phalanx/ops/grouped_wgmma.cuh"

namespace phalanx::cuda {
namespace {

// One group of all rows.
__global__ void make_offsets(int64_t* offsets, int64_t rows) {
  offsets[0] = 0;
  offsets[1] = rows;
}

bool fits(const Tensor& t) {
  constexpr int64_t kWord = 16;
  return t.dtype() == DType::bf16 && t.numel() > 0 && t.dim(1) * int64_t{sizeof(bf16)} % kWord == 0 &&
         reinterpret_cast<uintptr_t>(t.address()) % kWord == 0;
}

}  // namespace

bool wgmma_nt_swiglu(const Tensor& a, const Tensor& x, const Tensor& w) {
  PHX_CHECK(w.dim(1) == x.dim(1) && 2 * a.dim(1) == w.rows() && a.rows() == x.rows(),
            "a SwiGLU of {} of {} into {}", w.shape(), x.shape(), a.shape());
  if (!fits(a) || !fits(x) || !fits(w) || !has_grouped_wgmma<Form::nt, bf16, true>()) return false;
  const Tensor offsets = Tensor::empty({2}, DType::i64, x.device());
  make_offsets<<<1, 1, 0, current_stream().native()>>>(offsets.device_data<int64_t>(), x.rows());
  return launch_grouped_wgmma<Form::nt, bf16, true>({.a = x, .b = w, .c = a, .offsets = offsets});
}

}  // namespace phalanx::cuda
