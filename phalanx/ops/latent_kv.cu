#include <numeric>

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

// A team has one head of one row; kv [T, H·(nope + values)], shared [T, rope], k [T, H·(nope + rope)], v
// [T, H·values].
template <class T, int N>
__global__ void expand(const T* __restrict__ kv, const T* __restrict__ shared, T* __restrict__ k,
                       T* __restrict__ v, int64_t count, LatentHeads s) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= count) return;
  const T* const own = kv + i * (s.nope + s.values);
  const T* const of_row = shared + i / s.heads * s.rope;
  const int64_t keys = s.nope + s.rope;
#pragma unroll kInFlight
  for (int64_t c = int64_t{threadIdx.x} * N; c < keys + s.values; c += int64_t{blockDim.x} * N) {
    const T* const from = c < s.nope ? own + c : c < keys ? of_row + c - s.nope : own + c - s.rope;
    T* const to = c < keys ? k + i * keys + c : v + i * s.values + c - keys;
    store(to, load<T, N>(from));
  }
}

// The same way back, without the shared columns.
template <class T, int N>
__global__ void expand_backward(const T* __restrict__ dk, const T* __restrict__ dv, T* __restrict__ dkv,
                                int64_t count, LatentHeads s) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= count) return;
  const int64_t columns = s.nope + s.values;
#pragma unroll kInFlight
  for (int64_t c = int64_t{threadIdx.x} * N; c < columns; c += int64_t{blockDim.x} * N) {
    const T* const from = c < s.nope ? dk + i * (s.nope + s.rope) + c : dv + i * s.values + c - s.nope;
    store(dkv + i * columns + c, load<T, N>(from));
  }
}

// A thread has a pack of a row's shared columns; heads are summed in their order.
template <class T, int N>
__global__ void sum_shared(const T* __restrict__ dk, T* __restrict__ sums, int64_t count, LatentHeads s) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t packs = s.rope / N;
  const int64_t row = i / packs;
  const int64_t head_dim = s.nope + s.rope;
  const T* const from = dk + row * s.heads * head_dim + s.nope + (i - row * packs) * N;
  Arithmetic<T> sum[N] = {};
#pragma unroll kInFlight
  for (int64_t h = 0; h < s.heads; ++h) {
    const auto x = load<T, N>(from + h * head_dim);
    for (int k = 0; k < N; ++k) sum[k] += widen(x.v[k]);
  }
  Pack<T, N> rounded;
  for (int k = 0; k < N; ++k) rounded.v[k] = narrow<T>(sum[k]);
  store(sums + i * N, rounded);
}

// What all parts of a head are multiples of.
int64_t common(const LatentHeads& s) { return std::gcd(std::gcd(s.nope, s.rope), s.values); }

}  // namespace

KeysAndValues expand_kv(const Tensor& kv, const Tensor& k_rope, const LatentHeads& s) {
  const int64_t rows = kv.rows();
  const int64_t columns = s.nope + s.rope + s.values;
  const KeysAndValues out = {Tensor::empty({rows, s.heads * (s.nope + s.rope)}, kv.dtype(), kv.device()),
                             Tensor::empty({rows, s.heads * s.values}, kv.dtype(), kv.device())};
  if (rows == 0) return out;
  visit_stored(kv.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(common(s), {&kv, &k_rope, &out.k_THd, &out.v_THd}, [&](auto n) {
      const dim3 threads = row_threads(columns / n);
      expand<T, n><<<blocks_for(rows * s.heads, threads.y), threads, 0, current_stream().native()>>>(
          kv.device_data<T>(), k_rope.device_data<T>(), out.k_THd.device_data<T>(),
          out.v_THd.device_data<T>(), rows * s.heads, s);
    });
  });
  check_launch("expand_kv");
  return out;
}

LatentGradients expand_kv_backward(const Tensor& dk, const Tensor& dv, const LatentHeads& s) {
  const int64_t rows = dk.rows();
  const LatentGradients out = {Tensor::empty({rows, s.heads * (s.nope + s.values)}, dk.dtype(), dk.device()),
                               Tensor::empty({rows, s.rope}, dk.dtype(), dk.device())};
  if (rows == 0) return out;
  CUstream_st* const stream = current_stream().native();
  visit_stored(dk.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(common(s), {&dk, &dv, &out.dkv_THd, &out.dk_rope_Td}, [&](auto n) {
      const dim3 threads = row_threads((s.nope + s.values) / n);
      expand_backward<T, n><<<blocks_for(rows * s.heads, threads.y), threads, 0, stream>>>(
          dk.device_data<T>(), dv.device_data<T>(), out.dkv_THd.device_data<T>(), rows * s.heads, s);
      const int64_t packs = rows * (s.rope / n);
      sum_shared<T, n><<<blocks_for(packs, kThreads), kThreads, 0, stream>>>(
          dk.device_data<T>(), out.dk_rope_Td.device_data<T>(), packs, s);
    });
  });
  check_launch("expand_kv_backward");
  return out;
}

}  // namespace phalanx::cuda
