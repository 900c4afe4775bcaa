#include "phalanx/tensor/dtype.h"

namespace phalanx {

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::f8e4m3:
    case DType::f8e5m2:
      return 1;
  }
  PHX_CHECK(false, "dtype {}", static_cast<int>(dtype));
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::i8:
      return "i8";
    case DType::u8:
      return "u8";
    case DType::f8e4m3:
      return "f8e4m3";
    case DType::f8e5m2:
      return "f8e5m2";
  }
  return "?";
}

namespace {

// The format's numbers without sign: `mantissa` bits of significand, exponent bias `bias`, `largest` the bits
// of the largest number, all ones for NaN.
struct Float8 {
  int mantissa;
  int bias;
  uint32_t largest;

  uint8_t encode(float value) const {
    const auto u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = u >> 24 & 0x80u;
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
    const uint32_t smallest_normal = static_cast<uint32_t>(128 - bias) << 23;
    if (magnitude < smallest_normal) {  // adding a number whose unit is that of the subnormals rounds to it
      const uint32_t unit = static_cast<uint32_t>(128 - bias + 23 - mantissa) << 23;
      const float shifted = std::bit_cast<float>(magnitude) + std::bit_cast<float>(unit);
      return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - unit));
    }
    // The exponent's bias changes; a carry of the rounding into it is right.
    const int dropped = 23 - mantissa;
    const uint32_t rebased = magnitude - (static_cast<uint32_t>(127 - bias) << 23);
    const uint32_t rounded = rebased + ((1u << (dropped - 1)) - 1) + (magnitude >> dropped & 1u);
    const uint32_t bits = rounded >> dropped;
    return static_cast<uint8_t>(sign | (bits < largest ? bits : largest));
  }
};

constexpr Float8 kE4m3 = {.mantissa = 3, .bias = 7, .largest = 0x7e};
constexpr Float8 kE5m2 = {.mantissa = 2, .bias = 15, .largest = 0x7b};

}  // namespace

f8e4m3 f8e4m3::from(float value) { return {kE4m3.encode(value)}; }

float f8e4m3::to_float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {  // zero or subnormal: units of 2^-9
    const float value = static_cast<float>(magnitude) * 0x1p-9f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
}

f8e5m2 f8e5m2::from(float value) { return {kE5m2.encode(value)}; }

float f8e5m2::to_float() const { return f16{static_cast<uint16_t>(bits << 8)}.to_float(); }

f16 f16::from(float value) {
  const auto u = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(u >> 16 & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2, whose unit is 2^-24 too, moves the bits into place
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)))};
  }
  // The exponent's bias goes from 127 to 15; a carry of the rounding into it is right.
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
  return {static_cast<uint16_t>(sign | rounded >> 13)};
}

float f16::to_float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x400u) {  // zero or subnormal: units of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

}  // namespace phalanx
