// Element types.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "phalanx/base/check.h"

namespace phalanx {

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, i8, u8, f8e4m3, f8e5m2 };

/// A float without its lower 16 bits of significand. Ops compute in float; this is how it is stored.
struct bf16 {
  uint16_t bits;

  /// Rounds to nearest, ties to even; NaN stays NaN.
  static bf16 from(float value) {
    const auto u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(u >> 16 | 0x40u)};
    return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
  }
  /// Exact.
  float to_float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

/// IEEE 754 binary16: how it is stored; ops compute in float.
struct f16 {
  uint16_t bits;

  /// Rounds to nearest, ties to even; values from 65520 up become infinite, NaN stays NaN.
  static f16 from(float value);
  /// Exact.
  float to_float() const;
};

/// OCP FP8 with 4 bits of exponent and 3 of significand: no infinities, ±448 are the largest (Micikevicius et
/// al., FP8 Formats for Deep Learning, 2022, section 3). How values are stored; ops compute in float.
struct f8e4m3 {
  uint8_t bits;

  /// Rounds to nearest, ties to even; what is larger becomes ±448, as are infinities; NaN stays NaN.
  static f8e4m3 from(float value);
  /// Exact.
  float to_float() const;
};

/// OCP FP8 with 5 bits of exponent and 2 of significand, the upper half of an f16: ±57344 are the largest.
struct f8e5m2 {
  uint8_t bits;

  /// Rounds to nearest, ties to even; what is larger becomes ±57344, as are infinities; NaN stays NaN.
  static f8e5m2 from(float value);
  /// Exact.
  float to_float() const;
};

/// Bytes of one element.
size_t dtype_size(DType dtype);
/// The name used in messages and files: "f32".
std::string_view dtype_name(DType dtype);

/// The DType of a C++ type: dtype_of<float> == DType::f32.
template <class T>
inline constexpr DType dtype_of = [] {
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, bf16>) return DType::bf16;
  if constexpr (std::is_same_v<T, f16>) return DType::f16;
  if constexpr (std::is_same_v<T, int64_t>) return DType::i64;
  if constexpr (std::is_same_v<T, int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, int8_t>) return DType::i8;
  if constexpr (std::is_same_v<T, uint8_t>) return DType::u8;
  if constexpr (std::is_same_v<T, f8e4m3>) return DType::f8e4m3;
  if constexpr (std::is_same_v<T, f8e5m2>) return DType::f8e5m2;
}();

/// Calls f(T{}) with T the C++ type of a floating dtype that ops compute in (f32, f64).
template <class F>
decltype(auto) visit_float(DType dtype, F&& f) {
  if (dtype == DType::f64) return f(double{});
  PHX_CHECK(dtype == DType::f32, "dtype {}, expected f32 or f64", dtype_name(dtype));
  return f(float{});
}

}  // namespace phalanx
