#include "phalanx/ops/expert_products.h"

namespace phalanx {
namespace {

constexpr ScaleFormat kFormat = ScaleFormat::f32;

}  // namespace

ExpertRowsGradient expert_gradient(Rows dy_RN, const Tensor& offsets, Products products) {
  if (products == Products::same) return {std::move(dy_RN)};
  return {{}, fp8_grouped_rows_and_columns(dy_RN, offsets, kFormat)};
}

ExpertWeight ExpertWeight::forward(Tensor w_ENK, Products products) {
  ExpertWeight w(std::move(w_ENK), products);
  if (products == Products::fp8) w.blocks_ = fp8_blocks(w.w_ENK_, kFormat);
  return w;
}

ExpertWeight ExpertWeight::backward(Tensor w_ENK, Products products) {
  ExpertWeight w(std::move(w_ENK), products);
  if (products == Products::fp8) w.blocks_ = fp8_blocks_transposed(w.w_ENK_, kFormat);
  return w;
}

Rows ExpertWeight::multiply(const Rows& x_RK, const Tensor& offsets) const {
  if (products_ == Products::same) return grouped_matmul_nt(x_RK, w_ENK_, offsets);
  return fp8_grouped_matmul_nt(fp8_rows(x_RK, kFormat), blocks_, offsets, w_ENK_.dtype());
}

Rows ExpertWeight::multiply(const ExpertRowsGradient& dy, const Tensor& offsets) const {
  if (products_ == Products::same) return grouped_matmul(dy.dy_RN, w_ENK_, offsets);
  return fp8_grouped_matmul_nt(dy.fp8.rows, blocks_, offsets, w_ENK_.dtype());
}

void expert_gradient_into(const Tensor& dw_ENK, const ExpertRowsGradient& dy, const Rows& x_RK,
                          const Tensor& offsets, Products products, Into into) {
  if (products == Products::same) return grouped_matmul_tn_into(dw_ENK, dy.dy_RN, x_RK, offsets, into);
  const Fp8Lines x_KC = fp8_grouped_columns(x_RK, offsets, kFormat);
  fp8_grouped_matmul_tn_into(dw_ENK, dy.fp8.columns, x_KC, offsets, into);
}

}  // namespace phalanx
