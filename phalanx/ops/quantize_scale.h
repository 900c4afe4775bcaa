// The scale of values that become f8e4m3: arithmetic that the CPU's and the GPU's versions share, bit for
// bit.
#pragma once

#include <bit>

#include "phalanx/ops/quantize.h"

namespace phalanx {

/// Groups whose largest magnitude is below this are scaled as if it were this: rows that are sent, and
/// factors of products, among which gradients are as small as the loss makes them.
inline constexpr float kLeastMagnitude = 1e-4f;
inline constexpr float kLeastOfFactors = 0x1p-100f;

/// The exponent of the least power of two that is not below x, with the bias of floats.
constexpr uint8_t power_above(float x) {
  const auto u = std::bit_cast<uint32_t>(x);
  return static_cast<uint8_t>((u >> 23) + ((u & 0x7fffffu) != 0));
}

/// 2^(biased − 127).
constexpr float power(int biased) { return std::bit_cast<float>(static_cast<uint32_t>(biased) << 23); }

/// What the values of a group are multiplied by, and the scale, which undoes it.
struct GroupScale {
  float by;
  float scale;
};

/// Of a group whose largest magnitude is `largest`, at least 0x1p-110.
constexpr GroupScale group_scale(float largest, ScaleFormat format) {
  constexpr float kLargest = 448;
  const float scale = largest * (1 / kLargest);
  if (format == ScaleFormat::f32) return {kLargest / largest, scale};
  const uint8_t exponent = power_above(scale);
  return {power(254 - exponent), power(exponent)};
}

}  // namespace phalanx
