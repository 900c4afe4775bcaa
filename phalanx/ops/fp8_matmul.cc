#include "phalanx/ops/fp8_matmul.h"

#include <algorithm>
#include <cmath>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx {
namespace {

// q in f32: exact.
Tensor widened(const Tensor& q) {
  const Tensor out = Tensor::empty(q.shape(), DType::f32);
  const auto* const from = q.data<const f8e4m3>();
  auto* const to = out.data<float>();
  parallel_for(q.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = from[i].to_float();
  });
  return out;
}

// scale_b(g, n): of b's row n and group g of terms.
template <class ScaleB>
float sum_of(const Tensor& a, int64_t m, const Tensor& scales_a, const Tensor& b, int64_t n,
             const ScaleB& scale_b) {
  const int64_t terms = a.dim(1);
  const auto* const row_a = a.data<const float>() + m * terms;
  const auto* const row_b = b.data<const float>() + n * terms;
  float sum = 0;
  for (int64_t g = 0; g < scale_groups(terms); ++g) {
    const int64_t end = std::min(terms, (g + 1) * kScaleGroup);
    float part = 0;
    for (int64_t k = g * kScaleGroup; k < end; ++k) part += row_a[k] * row_b[k];
    const float scale = scales_a.data<const float>()[g * scales_a.dim(1) + m] * scale_b(g, n);
    sum = std::fma(part, scale, sum);
  }
  return sum;
}

// y (+)= sum(m, n).
template <class Sum>
void store_sums(const Tensor& y, Into into, const Sum& sum) {
  const int64_t width = y.dim(1);
  const auto store = [&](auto* to, const auto& widen, const auto& narrow) {
    parallel_for(y.rows(), 1, [&](int64_t m, int64_t) {
      for (int64_t n = 0; n < width; ++n) {
        auto& at = to[m * width + n];
        const float s = sum(m, n);
        at = narrow(into == Into::add ? s + widen(at) : s);
      }
    });
  };
  if (y.dtype() == DType::bf16) {
    store(
        y.data<bf16>(), [](bf16 x) { return x.to_float(); }, bf16::from);
  } else {
    store(
        y.data<float>(), [](float x) { return x; }, [](float x) { return x; });
  }
}

void check_factors(const Tensor& y, const Fp8Lines& a, const Tensor& b, const Shape& scales_b,
                   const Tensor& b_scales) {
  const int64_t m = a.q_RK.dim(0);
  const int64_t groups = scale_groups(a.q_RK.dim(1));
  PHX_CHECK(y.dim(0) == m && y.dim(1) == b.dim(0) && a.q_RK.dim(1) == b.dim(1),
            "fp8_matmul_nt_into {} of {} and {}", y.shape(), a.q_RK.shape(), b.shape());
  PHX_CHECK(a.scales_SR.shape() == padded_scales(groups, m) && b_scales.shape() == scales_b,
            "fp8_matmul_nt_into of {} and {} with scales {} and {}", a.q_RK.shape(), b.shape(),
            a.scales_SR.shape(), b_scales.shape());
}

int64_t operations(const Tensor& y, const Fp8Lines& a) { return 2 * y.numel() * a.q_RK.dim(1); }

}  // namespace

void fp8_matmul_nt_into(Tensor y, const Fp8Lines& a, const Fp8Blocks& b, Into into) {
  const int64_t groups = scale_groups(b.q_NK.dim(1));
  check_factors(y, a, b.q_NK, {scale_groups(b.q_NK.dim(0)), groups}, b.scales);
  if constexpr (kHaveCuda) {
    if (y.on_cuda()) return cuda::fp8_matmul_nt_into(y, a, b, into);
  }
  const TraceSpan span(TraceKind::product, "fp8_matmul_nt_into", operations(y, a));
  const Tensor wide_a = widened(a.q_RK);
  const Tensor wide_b = widened(b.q_NK);
  const auto scale_b = [scales = b.scales.data<const float>(), groups](int64_t g, int64_t n) {
    return scales[n / kScaleGroup * groups + g];
  };
  store_sums(y, into,
             [&](int64_t m, int64_t n) { return sum_of(wide_a, m, a.scales_SR, wide_b, n, scale_b); });
}

void fp8_matmul_nt_into(Tensor y, const Fp8Lines& a, const Fp8Lines& b, Into into) {
  check_factors(y, a, b.q_RK, padded_scales(scale_groups(b.q_RK.dim(1)), b.q_RK.dim(0)), b.scales_SR);
  if constexpr (kHaveCuda) {
    if (y.on_cuda()) return cuda::fp8_matmul_nt_into(y, a, b, into);
  }
  const TraceSpan span(TraceKind::product, "fp8_matmul_nt_into", operations(y, a));
  const Tensor wide_a = widened(a.q_RK);
  const Tensor wide_b = widened(b.q_RK);
  const auto scale_b = [scales = b.scales_SR.data<const float>(), pitch = b.scales_SR.dim(1)](
                           int64_t g, int64_t n) { return scales[g * pitch + n]; };
  store_sums(y, into,
             [&](int64_t m, int64_t n) { return sum_of(wide_a, m, a.scales_SR, wide_b, n, scale_b); });
}

}  // namespace phalanx
