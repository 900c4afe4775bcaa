// Eight neighbouring elements of a row as f32, and as f8e4m3.
#pragma once

#include <cuda_fp8.h>

#include "phalanx/ops/cuda_kernels.cuh"

namespace phalanx::cuda {

/// Neighbouring elements that a thread loads, converts and stores at once.
inline constexpr int kEight = 8;

/// The largest magnitude of v, at least `largest`; passes over NaN.
__device__ inline float largest_of(const float (&v)[kEight], float largest) {
#pragma unroll
  for (int j = 0; j < kEight; ++j) largest = fmaxf(largest, fabsf(v[j]));
  return largest;
}

/// v · by, to nearest; what is larger becomes ±448. The first is the lowest byte.
__device__ inline uint2 narrow_eight(const float (&v)[kEight], float by) {
  uint32_t pairs[kEight / 2];
#pragma unroll
  for (int j = 0; j < kEight / 2; ++j) {
    const float2 pair = {v[2 * j] * by, v[2 * j + 1] * by};
    pairs[j] = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
  }
  return {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
}

/// Exact.
__device__ inline void widen_eight(uint2 q, float (&v)[kEight]) {
  const uint32_t words[] = {q.x, q.y};
#pragma unroll
  for (int j = 0; j < kEight / 2; ++j) {
    const auto pair = static_cast<__nv_fp8x2_storage_t>(words[j / 2] >> 16 * (j % 2));
    const float2 f = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
    v[2 * j] = f.x;
    v[2 * j + 1] = f.y;
  }
}

/// Elements [at, at + 8) of row `row` of x [rows, width], zero where there are none. Whole: width is a
/// multiple of 8, and x of 16 bytes (f8e4m3: 8). Loads are made whether there are elements or not, so that
/// none waits for a condition: rows and width are not 0.
template <bool Whole, class T>
__device__ void load_eight(const T* x, int64_t row, int64_t at, int64_t rows, int64_t width,
                           Pack<T, kEight>& to) {
  const T* const from = x + min(row, rows - 1) * width;
  if constexpr (Whole) {
    to = load<T, kEight>(from + min(at, width - kEight));
    if (row >= rows || at >= width) to = {};
  } else {
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      to.v[j] = from[min(at + j, width - 1)];
      if (row >= rows || at + j >= width) to.v[j] = {};
    }
  }
}

template <class T>
__device__ void widen_eight(const Pack<T, kEight>& x, float (&v)[kEight]) {
  if constexpr (std::is_same_v<T, f8e4m3>) {
    uint2 q;
    memcpy(&q, &x, sizeof(q));
    widen_eight(q, v);
  } else {
#pragma unroll
    for (int j = 0; j < kEight; ++j) v[j] = widen(x.v[j]);
  }
}

/// Bytes [at, at + 8) of a row of `width` bytes, where there are any. Whole: width and `to` are multiples of
/// 8.
template <bool Whole>
__device__ void store_eight(f8e4m3* to, int64_t at, int64_t width, uint2 q) {
  if constexpr (Whole) {
    if (at < width) *reinterpret_cast<uint2*>(to + at) = q;
  } else {
    const uint64_t bytes = uint64_t{q.y} << 32 | q.x;
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      if (at + j < width) to[at + j].bits = static_cast<uint8_t>(bytes >> 8 * j);
    }
  }
}

/// Calls f(bool_constant Whole) for rows of `width` elements of these tensors.
template <class F>
void with_whole_eights(int64_t width, std::initializer_list<const Tensor*> tensors, F&& f) {
  const auto aligned = [](const Tensor* t) { return reinterpret_cast<uintptr_t>(t->address()) % 16 == 0; };
  if (width % kEight == 0 && std::all_of(tensors.begin(), tensors.end(), aligned)) {
    f(std::true_type());
  } else {
    f(std::false_type());
  }
}

/// Calls f(T{}) with T the C++ type of what is quantised: f32 or bf16.
template <class F>
void visit_quantized(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f(bf16{});
  PHX_CHECK(dtype == DType::f32, "f8e4m3 of {}", dtype_name(dtype));
  f(float{});
}

}  // namespace phalanx::cuda
