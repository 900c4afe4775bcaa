// The CUDA twin of reduce_parts: bf16 and f16 in f32, rounded once, integers wrapping.
#include <cuda_fp16.h>

#include <array>
#include <limits>

#include "phalanx/comm/combine.h"
#include "phalanx/comm/reduce.h"
#include "phalanx/ops/cuda_kernels.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMostParts = 256;  // what fits among a kernel's arguments

__device__ float value(bf16 x) { return widen(x); }
__device__ float value(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <class T>
__device__ T value(T x) {
  return x;
}

template <class T, class V>
__device__ T stored(V x) {
  if constexpr (std::is_same_v<T, f16>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else if constexpr (std::is_same_v<T, bf16>) {
    return narrow<bf16>(x);
  } else {
    return x;
  }
}

template <class T>
struct Parts {
  std::array<const T*, kMostParts> in;
  int count;
};

template <class T, int N, Reduce kReduce>
__global__ void reduce(const __grid_constant__ Parts<T> parts, T* out, int64_t count) {
  using V = decltype(value(T{}));
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i + N <= count) {
    V sum[N];
    auto x = load<T, N>(parts.in[0] + i);
    for (int k = 0; k < N; ++k) sum[k] = value(x.v[k]);
    for (int p = 1; p < parts.count; ++p) {
      x = load<T, N>(parts.in[p] + i);
      for (int k = 0; k < N; ++k) sum[k] = combine<kReduce>(sum[k], value(x.v[k]));
    }
    for (int k = 0; k < N; ++k) x.v[k] = stored<T>(sum[k]);
    store(out + i, x);
    return;
  }
  for (int64_t j = i; j < count; ++j) {
    V sum = value(parts.in[0][j]);
    for (int p = 1; p < parts.count; ++p) sum = combine<kReduce>(sum, value(parts.in[p][j]));
    out[j] = stored<T>(sum);
  }
}

template <class T>
void reduce_typed(const Tensor& out, std::span<const Tensor> in, Reduce how) {
  constexpr int kFull = 16 / sizeof(T);
  Parts<T> parts;
  parts.count = static_cast<int>(in.size());
  bool aligned = reinterpret_cast<uintptr_t>(out.address()) % 16 == 0;
  for (size_t p = 0; p < in.size(); ++p) {
    parts.in[p] = in[p].device_data<T>();
    aligned = aligned && reinterpret_cast<uintptr_t>(in[p].address()) % 16 == 0;
  }
  const auto launch = [&](auto n, auto kernel) {
    const unsigned blocks = blocks_for(out.numel(), int64_t{kThreads} * n);
    kernel<<<blocks, kThreads, 0, current_stream().native()>>>(parts, out.device_data<T>(), out.numel());
  };
  const auto pick = [&](auto n) {
    constexpr int kPack = decltype(n)::value;
    if (how == Reduce::sum) launch(kPack, reduce<T, kPack, Reduce::sum>);
    if (how == Reduce::max) launch(kPack, reduce<T, kPack, Reduce::max>);
    if (how == Reduce::min) launch(kPack, reduce<T, kPack, Reduce::min>);
  };
  if (aligned) {
    pick(std::integral_constant<int, kFull>{});
  } else {
    pick(std::integral_constant<int, 1>{});
  }
}

}  // namespace

void reduce_tensors(const Tensor& out, std::span<const Tensor> in, Reduce how) {
  PHX_CHECK(in.size() <= kMostParts, "a reduction of {} parts on a GPU", in.size());
  if (out.numel() == 0) return;
  switch (out.dtype()) {
    case DType::f64:
      reduce_typed<double>(out, in, how);
      break;
    case DType::f32:
      reduce_typed<float>(out, in, how);
      break;
    case DType::bf16:
      reduce_typed<bf16>(out, in, how);
      break;
    case DType::f16:
      reduce_typed<f16>(out, in, how);
      break;
    case DType::i64:
      reduce_typed<int64_t>(out, in, how);
      break;
    case DType::i32:
      reduce_typed<int32_t>(out, in, how);
      break;
    default:
      PHX_CHECK(false, "a reduction of {}", dtype_name(out.dtype()));
  }
  check_launch("reduce");
}

}  // namespace phalanx::cuda
