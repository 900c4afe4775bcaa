// Quantised rows against the definition, element by element, bit for bit; and how far they are from what was
// quantised.
#include "phalanx/ops/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace phalanx {
namespace {

Tensor random_rows(int64_t rows, int64_t width, DType dtype, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> exponent(-12, 12);
  const Tensor t = Tensor::empty({rows, width}, dtype);
  for (int64_t r = 0; r < rows; ++r) {
    const float size = std::exp2(exponent(random));
    for (int64_t i = r * width; i < (r + 1) * width; ++i) {
      const float v = random() % 17 == 0 ? 0 : size * normal(random);
      if (dtype == DType::f32) t.data<float>()[i] = v;
      if (dtype == DType::bf16) t.data<bf16>()[i] = bf16::from(v);
      if (dtype == DType::f16) t.data<f16>()[i] = f16::from(v);
    }
  }
  return t;
}

float element(const Tensor& t, int64_t i) {
  if (t.dtype() == DType::f32) return t.data<float>()[i];
  return t.dtype() == DType::bf16 ? t.data<bf16>()[i].to_float() : t.data<f16>()[i].to_float();
}

float rounded_to(DType dtype, float v) {
  if (dtype == DType::f32) return v;
  return dtype == DType::bf16 ? bf16::from(v).to_float() : f16::from(v).to_float();
}

struct Scale {
  float by;    // elements are multiplied by it
  float back;  // and q by this
};

Scale scale_of(float largest, ScaleFormat format) {
  const float back = largest * (1 / 448.0f);
  if (format == ScaleFormat::f32) return {448 / largest, back};
  const auto power = static_cast<float>(std::exp2(std::ceil(std::log2(static_cast<double>(back)))));
  return {1 / power, power};
}

class QuantizeTest : public testing::TestWithParam<std::tuple<DType, ScaleFormat>> {};

TEST_P(QuantizeTest, IsTheDefinition) {
  const auto [dtype, format] = GetParam();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int run = 0; run < 60; ++run) {
    const auto rows = static_cast<int64_t>(random() % 5);
    const auto width = static_cast<int64_t>(run % 3 == 0 ? 128 * (1 + random() % 3) : 1 + random() % 400);
    const Tensor x = random_rows(rows, width, dtype, random);
    const Quantized got = quantize(x, format);
    const Tensor back = dequantize(got, dtype);
    ASSERT_EQ(got.scales_TS.shape(), Shape({rows, (width + 127) / 128}));
    for (int64_t i = 0; i < x.numel(); ++i) {
      const int64_t row = i / width;
      const int64_t group = i % width / 128;
      float largest = 1e-4f;
      for (int64_t j = 128 * group; j < std::min(width, 128 * group + 128); ++j) {
        largest = std::max(largest, std::abs(element(x, row * width + j)));
      }
      const Scale want = scale_of(largest, format);
      const int64_t at = row * got.scales_TS.dim(1) + group;
      const float scale = format == ScaleFormat::f32
                              ? got.scales_TS.data<float>()[at]
                              : std::ldexp(1.0f, got.scales_TS.data<uint8_t>()[at] - 127);
      ASSERT_EQ(scale, want.back) << "row " << row << ", group " << group;
      const f8e4m3 q = got.q_TD.data<f8e4m3>()[i];
      ASSERT_EQ(q.bits, f8e4m3::from(element(x, i) * want.by).bits) << "row " << row << ", element " << i;
      // Half of the last of four bits, or half of the smallest unit, 2^-9.
      const float allowed = std::max(std::abs(element(x, i)) / 16, 0x1p-10f * scale) * 1.01f;
      const float value = q.to_float() * scale;
      ASSERT_LE(std::abs(value - element(x, i)), allowed);
      ASSERT_EQ(element(back, i), rounded_to(dtype, value));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeTest,
                         testing::Combine(testing::Values(DType::f32, DType::bf16, DType::f16),
                                          testing::Values(ScaleFormat::f32, ScaleFormat::ue8m0)));

TEST(Quantize, PowersOfTwoSurviveUnchanged) {
  const Tensor x = Tensor::empty({1, 256}, DType::f32);
  for (int64_t i = 0; i < 256; ++i) {
    x.data<float>()[i] = std::ldexp(static_cast<float>(i % 15 - 7), static_cast<int>(i / 128) * 9 - 5);
  }
  const Tensor back = dequantize(quantize(x, ScaleFormat::ue8m0), DType::f32);
  for (int64_t i = 0; i < 256; ++i) EXPECT_EQ(back.data<float>()[i], x.data<float>()[i]) << i;
}

TEST(Quantize, NanStaysWithItsElement) {
  const Tensor x = Tensor::empty({1, 130}, DType::f32);
  for (int64_t i = 0; i < 130; ++i) x.data<float>()[i] = static_cast<float>(i);
  x.data<float>()[5] = std::numeric_limits<float>::quiet_NaN();
  for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::ue8m0}) {
    const Tensor back = dequantize(quantize(x, format), DType::f32);
    for (int64_t i = 0; i < 130; ++i) EXPECT_EQ(std::isnan(back.data<float>()[i]), i == 5) << i;
    EXPECT_NEAR(back.data<float>()[127], 127, 8);
  }
}

}  // namespace
}  // namespace phalanx
