// Rows in f8e4m3 with a scale for every 128 elements (DeepSeek-V3 technical report, 2024, section 3.3.2;
// the arithmetic is that of DeepEP's kernels).
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Elements of a row that share a scale; the last group of a row may have fewer.
inline constexpr int64_t kScaleGroup = 128;

/// f32: any scale. ue8m0: powers of two, kept as u8: 2^(u − 127).
enum class ScaleFormat : uint8_t { f32, ue8m0 };

/// x[t, d] ≈ q[t, d] · scales[t, d / 128].
struct Quantized {
  Tensor q_TD;       // f8e4m3
  Tensor scales_TS;  // f32 or u8 (UE8M0) [T, ⌈D / 128⌉]
};

/// Groups in a row of so many elements.
inline int64_t scale_groups(int64_t width) { return (width + kScaleGroup - 1) / kScaleGroup; }

/// x [T, D] of f32, bf16 or f16. With a the largest |x| of a group, at least 1e-4, NaN passed over: f32
/// scales are a / 448, and q is x · (448 / a); ue8m0 scales are the least power of two that is not below a /
/// 448, and q is x divided by it. Both in f32, then to nearest. On a GPU of f32 or bf16, to the same bits,
/// but that NaN has no sign there.
Quantized quantize(const Tensor& x_TD, ScaleFormat format);

/// q · scale in f32, rounded to dtype: f32, bf16 or f16 [T, D].
Tensor dequantize(const Quantized& x, DType dtype);

}  // namespace phalanx
