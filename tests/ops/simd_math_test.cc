// The stated errors of the f32 functions that kernels share, over all magnitudes.
#include <bit>
#include <limits>

#include "phalanx/ops/simd_targets.h"
#include "tests/ops/reference.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/ops/simd_math_test.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

void exp_kernel(const Tensor& x, const Tensor& y) {
  const hn::ScalableTag<float> d;
  for_lanes(d, x.numel(), [&](auto at, int64_t i) PHX_LANES {
    at.store(exp(d, at.load(d, x.data<float>() + i)), d, y.data<float>() + i);
  });
}

void normal_kernel(const Tensor& x, const Tensor& cdf, const Tensor& density) {
  const hn::ScalableTag<float> d;
  for_lanes(d, x.numel(), [&](auto at, int64_t i) PHX_LANES {
    const auto n = normal(d, at.load(d, x.data<float>() + i));
    at.store(n.cdf, d, cdf.data<float>() + i);
    at.store(n.density, d, density.data<float>() + i);
  });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(exp_kernel);
HWY_EXPORT(normal_kernel);
}  // namespace

namespace test {
namespace {

// Every `stride`-th float of [low, high], from a random one on.
Tensor floats(Random& random, float low, float high, uint32_t stride) {
  std::vector<float> out;
  const auto first = static_cast<uint32_t>(random.integer(0, stride - 1));
  for (uint64_t bits = first; bits <= std::numeric_limits<uint32_t>::max(); bits += stride) {
    const auto v = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (v >= low && v <= high) out.push_back(v);
  }
  return Tensor::of(Shape{static_cast<int64_t>(out.size())}, std::span<const float>(out));
}

// The largest error in units of the last place of the exact value.
template <class F>
double worst_ulps(const Tensor& x, const Tensor& y, F exact) {
  double worst = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double want = exact(static_cast<double>(x.data<float>()[i]));
    const double unit = std::exp2(std::ilogb(want) - 23);
    worst = std::max(worst, std::abs(static_cast<double>(y.data<float>()[i]) - want) / unit);
  }
  return worst;
}

TEST(SimdMath, ExpWithinItsError) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = floats(random, -87.336F, 88.7228F, 10007);
  for_each_target([&](bool) {
    const Tensor y = Tensor::empty(x.shape(), DType::f32);
    HWY_DYNAMIC_DISPATCH(exp_kernel)(x, y);
    EXPECT_LE(worst_ulps(x, y, [](double v) { return std::exp(v); }), 1.1);
  });
}

TEST(SimdMath, ExpAtItsEnds) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kMax = std::numeric_limits<float>::max();
  const Tensor x = tensor({8}, DType::f32, {-kInf, -kMax, -87.4F, 88.73F, kMax, kInf, 0, -0.0});
  for_each_target([&](bool) {
    const Tensor y = Tensor::empty(x.shape(), DType::f32);
    HWY_DYNAMIC_DISPATCH(exp_kernel)(x, y);
    EXPECT_EQ(values(y), (Values{0, 0, 0, kInf, kInf, kInf, 1, 1}));
    // NaN of any payload and sign.
    const Tensor nan = Tensor::empty({3}, DType::f32);
    const uint32_t bits[] = {0x7FC00000u, 0xFF800001u, 0x7FFFFFFFu};
    for (int64_t i = 0; i < 3; ++i) nan.data<float>()[i] = std::bit_cast<float>(bits[i]);
    HWY_DYNAMIC_DISPATCH(exp_kernel)(nan, nan);
    for (const double v : values(nan)) EXPECT_TRUE(std::isnan(v));
  });
}

TEST(SimdMath, NormalWithinItsError) {
  Random random;
  SCOPED_TRACE(random.trace());
  const auto cdf = [](double v) { return 0.5 * std::erfc(-v / std::sqrt(2.0)); };
  const auto density = [](double v) { return std::exp(-v * v / 2) / std::sqrt(2 * M_PI); };
  const Tensor all = floats(random, -12.7F, 20, 10007);
  const Tensor right = floats(random, 0.5F, 20, 10007);
  const Tensor near = floats(random, -12.7F, 12.7F, 10007);
  for_each_target([&](bool fused) {
    if (!fused) return;
    for (const auto& [x, cdf_ulps, density_ulps] :
         {std::tuple(all, 6.6, 1e30), {right, 2.0, 1e30}, {near, 6.6, 2.8}}) {
      const Tensor p = Tensor::empty(x.shape(), DType::f32);
      const Tensor q = Tensor::empty(x.shape(), DType::f32);
      HWY_DYNAMIC_DISPATCH(normal_kernel)(x, p, q);
      EXPECT_LE(worst_ulps(x, p, cdf), cdf_ulps);
      EXPECT_LE(worst_ulps(x, q, density), density_ulps);
    }
  });
}

}  // namespace
}  // namespace test
}  // namespace phalanx
#endif
