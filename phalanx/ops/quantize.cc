#include "phalanx/ops/quantize.h"

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/quantize_scale.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/quantize.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

void keep(float scale, float* stored) { *stored = scale; }
void keep(float scale, uint8_t* stored) { *stored = power_above(scale); }

template <class Scale>
constexpr ScaleFormat kFormatOf = sizeof(Scale) == sizeof(float) ? ScaleFormat::f32 : ScaleFormat::ue8m0;

float scale_of(float stored) { return stored; }
float scale_of(uint8_t stored) { return power(stored); }

template <class S, class Scale>
HWY_INLINE void quantize_group(int64_t n, const typename S::Stored* x, uint8_t* q, Scale* scale) {
  const hn::ScalableTag<float> d;
  auto largest = hn::Set(d, kLeastMagnitude);
  for_lanes(d, n, [&](auto at, int64_t i) PHX_LANES {
    const auto magnitude = hn::Abs(S::load(at, d, x + i));
    largest = hn::IfThenElse(hn::Gt(magnitude, largest), magnitude, largest);  // passes over NaN
  });
  const GroupScale group = group_scale(hn::GetLane(hn::MaxOfLanes(d, largest)), kFormatOf<Scale>);
  keep(group.scale, scale);
  const auto by = hn::Set(d, group.by);
  for_lanes(d, n, [&](auto at, int64_t i) PHX_LANES {
    E4m3::store(at, hn::Mul(S::load(at, d, x + i), by), d, q + i);
  });
}

template <class S, class Scale>
void quantize_rows(const Tensor& x, const Quantized& to) {
  const int64_t width = x.dim(1);
  const int64_t groups = scale_groups(width);
  const auto* const from = reinterpret_cast<const typename S::Stored*>(x.raw());
  auto* const q = reinterpret_cast<uint8_t*>(to.q_TD.raw());
  auto* const scales = to.scales_TS.data<Scale>();
  for_rows<float>(x.rows(), width, [&](auto, int64_t row) HWY_ATTR {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = row * width + g * kScaleGroup;
      const int64_t n = std::min(kScaleGroup, width - g * kScaleGroup);
      quantize_group<S>(n, from + begin, q + begin, scales + row * groups + g);
    }
  });
}

template <class S, class Scale>
void dequantize_rows(const Quantized& x, const Tensor& y) {
  const int64_t width = y.dim(1);
  const int64_t groups = scale_groups(width);
  const auto* const q = reinterpret_cast<const uint8_t*>(x.q_TD.raw());
  const auto* const scales = x.scales_TS.data<Scale>();
  auto* const to = reinterpret_cast<typename S::Stored*>(y.raw());
  for_rows<float>(y.rows(), width, [&](auto d, int64_t row) HWY_ATTR {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = row * width + g * kScaleGroup;
      const auto scale = hn::Set(d, scale_of(scales[row * groups + g]));
      for_lanes(d, std::min(kScaleGroup, width - g * kScaleGroup), [&](auto at, int64_t i) PHX_LANES {
        S::store(at, hn::Mul(E4m3::load(at, d, q + begin + i), scale), d, to + begin + i);
      });
    }
  });
}

void quantize_kernel(const Tensor& x, const Quantized& to) {
  visit_floats(x.dtype(), [&](auto stored) {
    using S = decltype(stored);
    return to.scales_TS.dtype() == DType::f32 ? quantize_rows<S, float>(x, to)
                                              : quantize_rows<S, uint8_t>(x, to);
  });
}

void dequantize_kernel(const Quantized& x, const Tensor& y) {
  visit_floats(y.dtype(), [&](auto stored) {
    using S = decltype(stored);
    return x.scales_TS.dtype() == DType::f32 ? dequantize_rows<S, float>(x, y)
                                             : dequantize_rows<S, uint8_t>(x, y);
  });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(quantize_kernel);
HWY_EXPORT(dequantize_kernel);
}  // namespace

Quantized quantize(const Tensor& x, ScaleFormat format) {
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::quantize(x, format);
  }
  const DType scale = format == ScaleFormat::f32 ? DType::f32 : DType::u8;
  Quantized out = {Tensor::empty(x.shape(), DType::f8e4m3),
                   Tensor::empty({x.rows(), scale_groups(x.dim(1))}, scale)};
  const TraceSpan span(TraceKind::elementwise, "quantize", x.bytes() + out.q_TD.bytes());
  HWY_DYNAMIC_DISPATCH(quantize_kernel)(x, out);
  return out;
}

Tensor dequantize(const Quantized& x, DType dtype) {
  const Tensor y = Tensor::empty(x.q_TD.shape(), dtype);
  const Shape scales = {y.rows(), scale_groups(y.dim(1))};
  PHX_CHECK(x.q_TD.dtype() == DType::f8e4m3 && x.scales_TS.shape() == scales, "{} {} with scales {}",
            dtype_name(x.q_TD.dtype()), y.shape(), x.scales_TS.shape());
  const TraceSpan span(TraceKind::elementwise, "dequantize", x.q_TD.bytes() + y.bytes());
  HWY_DYNAMIC_DISPATCH(dequantize_kernel)(x, y);
  return y;
}

}  // namespace phalanx
#endif
