#include "phalanx/ops/linear_products.h"

#include "phalanx/base/check.h"

namespace phalanx {
namespace {

// Of what backward takes columns from, and of the rest, whose scales may be any.
constexpr ScaleFormat kOfInputs = ScaleFormat::ue8m0;
constexpr ScaleFormat kOfOthers = ScaleFormat::f32;

void check_all(const Fp8Lines& lines, int64_t begin, int64_t end) {
  PHX_CHECK(begin == 0 && end == lines.q_RK.rows(), "rows {} to {} of {} in FP8", begin, end,
            lines.q_RK.rows());
}

}  // namespace

LinearRows LinearRows::slice(int64_t begin, int64_t end) const {
  if (x_MK.defined()) return {x_MK.slice(begin, end)};
  check_all(fp8, begin, end);
  return *this;
}

LinearRows fp8_input(const Tensor& x_MK) { return {{}, fp8_rows(x_MK, kOfInputs)}; }

LinearGradient LinearGradient::slice(int64_t begin, int64_t end) const {
  if (dy_MN.defined()) return {dy_MN.slice(begin, end)};
  check_all(fp8.rows, begin, end);
  return *this;
}

LinearGradient fp8_gradient(const Tensor& dy_MN) { return {{}, fp8_rows_and_columns(dy_MN, kOfOthers)}; }

LinearWeight LinearWeight::forward(Tensor w_NK, Products products) {
  LinearWeight w(std::move(w_NK), products);
  if (products == Products::fp8) w.blocks_ = fp8_blocks(w.w_NK_, kOfOthers);
  return w;
}

LinearWeight LinearWeight::backward(Tensor w_NK, Products products) {
  LinearWeight w(std::move(w_NK), products);
  if (products == Products::fp8) w.blocks_ = fp8_blocks_transposed(w.w_NK_, kOfOthers);
  return w;
}

void LinearWeight::multiply(const Tensor& y_MN, const LinearRows& x, Into into) const {
  if (products_ == Products::same) return matmul_nt_into(y_MN, x.x_MK, w_NK_, into);
  fp8_matmul_nt_into(y_MN, x.x_MK.defined() ? fp8_rows(x.x_MK, kOfInputs) : x.fp8, blocks_, into);
}

void LinearWeight::multiply(const Tensor& dx_MK, const LinearGradient& dy, Into into) const {
  if (products_ == Products::same) return matmul_into(dx_MK, dy.dy_MN, w_NK_, into);
  fp8_matmul_nt_into(dx_MK, dy.dy_MN.defined() ? fp8_rows(dy.dy_MN, kOfOthers) : dy.fp8.rows, blocks_, into);
}

void linear_gradient_into(const Tensor& dw_NK, const LinearGradient& dy, const LinearRows& x,
                          Products products, Into into) {
  if (products == Products::same) return matmul_tn_into(dw_NK, dy.dy_MN, x.x_MK, into);
  const Fp8Lines x_KM = x.x_MK.defined() ? fp8_columns(x.x_MK, kOfInputs) : fp8_columns(x.fp8);
  const Fp8Lines dy_NM = dy.dy_MN.defined() ? fp8_columns(dy.dy_MN, kOfOthers) : dy.fp8.columns;
  fp8_matmul_nt_into(dw_NK, dy_NM, x_KM, into);
}

}  // namespace phalanx
