// f8e4m3 and f8e5m2 against the definition: the nearest representable value, ties to even, at most the
// largest.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "phalanx/tensor/dtype.h"

namespace phalanx {
namespace {

template <class T>
class Float8Test : public testing::Test {
 protected:
  // The format's value of some bits, by its definition; infinite bits of e5m2 as infinities.
  static double value(int bits) {
    constexpr bool kE4m3 = std::is_same_v<T, f8e4m3>;
    constexpr int kMantissa = kE4m3 ? 3 : 2;
    constexpr int kBias = kE4m3 ? 7 : 15;
    const int exponent = (bits & 0x7f) >> kMantissa;
    const int fraction = bits & ((1 << kMantissa) - 1);
    const double sign = bits & 0x80 ? -1 : 1;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    if (kE4m3 && (bits & 0x7f) == 0x7f) return nan;
    if (!kE4m3 && exponent == 31) return fraction ? nan : sign * std::numeric_limits<double>::infinity();
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - kBias - kMantissa);
    return sign * std::ldexp((1 << kMantissa) + fraction, exponent - kBias - kMantissa);
  }
  // The finite numbers that are not negative, ascending; bits are their indices.
  static std::vector<double> numbers() {
    std::vector<double> out;
    for (int bits = 0; std::isfinite(value(bits)); ++bits) out.push_back(value(bits));
    return out;
  }
  // By search: the nearest, of two equally near the one whose bits are even.
  static int nearest(const std::vector<double>& numbers, double x) {
    const auto above = std::ranges::lower_bound(numbers, x);
    const auto i = static_cast<int>(above - numbers.begin());
    if (above == numbers.end()) return i - 1;
    if (i == 0) return 0;
    const double up = numbers[static_cast<size_t>(i)] - x;
    const double down = x - numbers[static_cast<size_t>(i) - 1];
    if (up != down) return up < down ? i : i - 1;
    return i % 2 == 0 ? i : i - 1;
  }
};
using Float8s = testing::Types<f8e4m3, f8e5m2>;
TYPED_TEST_SUITE(Float8Test, Float8s);

TYPED_TEST(Float8Test, EveryBitPatternIsWhatTheFormatSays) {
  for (int bits = 0; bits < 256; ++bits) {
    const double want = this->value(bits);
    const float got = TypeParam{static_cast<uint8_t>(bits)}.to_float();
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
      EXPECT_TRUE(std::isnan(TypeParam::from(got).to_float())) << bits;
      continue;
    }
    EXPECT_EQ(got, want) << bits;
    EXPECT_EQ(std::signbit(got), bits >= 128) << bits;
    if (std::isfinite(want)) {
      EXPECT_EQ(TypeParam::from(got).bits, bits);
    }
  }
}

TYPED_TEST(Float8Test, RoundsToNearestEvenAndSaturates) {
  const std::vector<double> numbers = this->numbers();
  const auto expect = [&](float x) {
    const int want = this->nearest(numbers, std::abs(static_cast<double>(x))) | (std::signbit(x) ? 0x80 : 0);
    ASSERT_EQ(TypeParam::from(x).bits, want) << x;
  };
  for (size_t i = 0; i + 1 < numbers.size(); ++i) {  // halfway between two, and a float beside it
    const auto middle = static_cast<float>((numbers[i] + numbers[i + 1]) / 2);
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      ASSERT_NO_FATAL_FAILURE(expect(x));
      ASSERT_NO_FATAL_FAILURE(expect(-x));
    }
  }
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 100'000; ++i) {  // any float but NaN
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(x)) continue;
    ASSERT_NO_FATAL_FAILURE(expect(x));
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(TypeParam::from(infinity).to_float(), numbers.back());
  EXPECT_EQ(TypeParam::from(-infinity).to_float(), -numbers.back());
}

}  // namespace
}  // namespace phalanx
