// ops/matmul.h on a GPU: what each product is to cuBLASLt.
#include "phalanx/ops/cublaslt.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/few_rows.h"

namespace phalanx::cuda {
namespace {

enum class Weight : uint8_t { plain, transposed };

// y [M, N] = x [M, K] · w, which is stored [K, N] or [N, K].
Product of_rows(const Tensor& x, Weight w, const Tensor& y, Into into, Epilogue epilogue = Epilogue::none) {
  return {.dtype = x.dtype(),
          .result = y.dtype(),
          .transpose_a = false,
          .transpose_b = w == Weight::transposed,
          .accumulate = into == Into::add,
          .epilogue = epilogue,
          .m = x.dim(0),
          .n = y.dim(1),
          .k = x.dim(1)};
}

}  // namespace

Tensor matmul(const Tensor& x, const Tensor& w) {
  const Tensor y = Tensor::empty({x.dim(0), w.dim(1)}, x.dtype(), x.device());
  cuda::matmul_into(y, x, w, Into::replace);
  return y;
}

void matmul_into(const Tensor& y, const Tensor& x, const Tensor& w, Into into) {
  multiply(of_rows(x, Weight::plain, y, into), {x, w, y});
}

Tensor matmul_nt(const Tensor& x, const Tensor& w) {
  const Tensor y = Tensor::empty({x.dim(0), w.dim(0)}, x.dtype(), x.device());
  cuda::matmul_nt_into(y, x, w, Into::replace);
  return y;
}

void matmul_nt_into(const Tensor& y, const Tensor& x, const Tensor& w, Into into) {
  const LinearOf linear = {y, w, {}, {}};
  if (into == Into::replace && multiply_few_rows(x, {&linear, 1})) return;
  multiply(of_rows(x, Weight::transposed, y, into), {x, w, y});
}

void linear_into(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& also) {
  const LinearOf linear = {y, w, b, also};
  if (multiply_few_rows(x, {&linear, 1})) return;
  const bool whole = x.dim(1) > 0;
  const bool fused = b.defined() && whole && y.dtype() != DType::f64;  // what cuBLASLt can
  const Into into = whole && also.defined() ? Into::add : Into::replace;
  const Epilogue epilogue = fused ? Epilogue::bias : Epilogue::none;
  multiply(of_rows(x, Weight::transposed, y, into, epilogue),
           {.a = x, .b = w, .c = y, .bias = b, .also = also});
  if (b.defined() && !fused) add_bias_into(y, b);
  if (also.defined() && !whole) add_into(y, also);
}

bool fuses_gelu(const Tensor& h, Gelu kind) {
  constexpr int64_t kRow = 16 / sizeof(bf16);  // of aux: whole accesses
  return kind == Gelu::tanh && h.dtype() == DType::bf16 && h.dim(1) % kRow == 0;
}

void linear_gelu_into(const GeluRows& out, const Tensor& x, const Tensor& w, const Tensor& b) {
  const Epilogue epilogue = b.defined() ? Epilogue::gelu_bias : Epilogue::gelu;
  multiply(of_rows(x, Weight::transposed, out.a, Into::replace, epilogue),
           {.a = x, .b = w, .c = out.a, .bias = b, .aux = out.h});
}

void matmul_gelu_backward_into(const Tensor& dh, const Tensor& dy, const Tensor& w, const Tensor& h) {
  multiply(of_rows(dy, Weight::plain, dh, Into::replace, Epilogue::gelu_backward),
           {.a = dy, .b = w, .c = dh, .aux = h});
}

void matmul_tn_into(const Tensor& dw, const Tensor& dy, const Tensor& x, Into into) {
  multiply({.dtype = x.dtype(),
            .result = dw.dtype(),
            .transpose_a = true,
            .transpose_b = false,
            .accumulate = into == Into::add,
            .m = dy.dim(1),
            .n = x.dim(1),
            .k = dy.dim(0)},
           {dy, x, dw});
}

}  // namespace phalanx::cuda
