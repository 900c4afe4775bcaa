#include "phalanx/ops/gelu_linear.h"

#include "phalanx/base/error.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/matmul.h"

namespace phalanx {

void linear_gelu_into(const GeluRows& out, const Tensor& x, const Tensor& w, const Tensor& b, Gelu kind) {
  PHX_CHECK(out.h.shape() == out.a.shape(), "linear_gelu_into {} and {}", out.h.shape(), out.a.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda() && x.dim(1) > 0 && cuda::fuses_gelu(out.h, kind)) {
      return cuda::linear_gelu_into(out, x, w, b);
    }
  }
  linear_into(out.h, x, w, b);
  gelu_into(out.a, out.h, kind);
}

void matmul_gelu_backward_into(Tensor dh, const Tensor& dy, const Tensor& w, const Tensor& h, Gelu kind) {
  PHX_CHECK(dh.shape() == h.shape(), "matmul_gelu_backward_into {} at {}", dh.shape(), h.shape());
  if constexpr (kHaveCuda) {
    if (dy.on_cuda() && dy.dim(1) > 0 && cuda::fuses_gelu(h, kind)) {
      return cuda::matmul_gelu_backward_into(dh, dy, w, h);
    }
  }
  matmul_into(dh, dy, w, Into::replace);
  gelu_backward_into(dh, dh, h, kind);
}

}  // namespace phalanx
