// bf16 and f16 against the definition: the nearest representable value, ties to even.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "phalanx/tensor/dtype.h"

namespace phalanx {
namespace {

template <class H>
class HalfTest : public testing::Test {};
using Halves = testing::Types<bf16, f16>;
TYPED_TEST_SUITE(HalfTest, Halves);

// Significand bits, smallest normal exponent and largest finite value.
template <class H>
struct Format;
template <>
struct Format<bf16> {
  static constexpr int kBits = 8;
  static constexpr int kMinExponent = -126;
  static constexpr double kMax = 0x1.FEp127;
};
template <>
struct Format<f16> {
  static constexpr int kBits = 11;
  static constexpr int kMinExponent = -14;
  static constexpr double kMax = 65504;
};

template <class H>
double rounded(double x) {
  using F = Format<H>;
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), F::kMinExponent);
  const double unit = std::ldexp(1.0, exponent - F::kBits + 1);
  const double r = std::nearbyint(x / unit) * unit;
  return std::abs(r) > F::kMax ? std::copysign(std::numeric_limits<double>::infinity(), x) : r;
}

TYPED_TEST(HalfTest, EveryBitPatternSurvives) {
  for (uint32_t u = 0; u < 0x10000; ++u) {
    const TypeParam h{static_cast<uint16_t>(u)};
    const float f = h.to_float();
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(TypeParam::from(f).to_float()));
    } else {
      ASSERT_EQ(TypeParam::from(f).bits, u) << f;
    }
  }
}

TYPED_TEST(HalfTest, RoundsToNearestEven) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 200'000; ++i) {
    uint32_t u = random();
    if (i % 3 == 0) u &= 0xffff8000u;                     // near ties
    if (i % 3 == 1) u = (u & 0x83ffffffu) | 0x38000000u;  // near f16's range
    const auto f = std::bit_cast<float>(u);
    if (std::isnan(f)) continue;
    const double expected = rounded<TypeParam>(f);
    const float got = TypeParam::from(f).to_float();
    ASSERT_EQ(static_cast<double>(got), expected) << f;
    ASSERT_EQ(std::signbit(got), std::signbit(f)) << f;
  }
}

}  // namespace
}  // namespace phalanx
