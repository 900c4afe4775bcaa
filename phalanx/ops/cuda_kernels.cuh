// What kernels share: rows cut over threads, 16-byte accesses, sums in a fixed order.
//
// Threads of a block form threadIdx.y teams of blockDim.x threads (a multiple of 32); a team works on one
// row. Sums run in an order that depends on shapes alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/fault.h"
#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 512;  // of a block

/// N elements that are loaded and stored at once, in accesses of 16 bytes at most.
template <class T, int N>
struct alignas(std::min<size_t>(16, sizeof(T) * N)) Pack {
  T v[N];
};

template <class T, int N>
__device__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

/// To global memory, by `write(uint4* at, uint4)` where the pack is whole 16 bytes: the compiler, left to
/// itself, cuts the store of a struct behind a condition into one an element.
template <class T, int N, class F>
__device__ void store_words(T* to, const Pack<T, N>& pack, F write) {
  if constexpr (sizeof(pack) % sizeof(uint4) == 0) {
    constexpr int kWhole = sizeof(pack) / sizeof(uint4);
    uint4 words[kWhole];
    memcpy(words, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < kWhole; ++i) write(reinterpret_cast<uint4*>(to) + i, words[i]);
  } else {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  }
}

template <class T, int N>
__device__ void store(T* to, const Pack<T, N>& pack) {
  store_words(to, pack, [](uint4* at, uint4 words) { __stwb(at, words); });
}

/// The same past the caches.
template <class T, int N>
__device__ void stream_out(T* to, const Pack<T, N>& pack) {
  store_words(to, pack, [](uint4* at, uint4 words) { __stcs(at, words); });
}

/// What arithmetic on T is made in.
template <class T>
struct ArithmeticOf {
  using type = T;
};
template <>
struct ArithmeticOf<bf16> {
  using type = float;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

/// Exact.
template <class T>
__device__ Arithmetic<T> widen(T x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __uint_as_float(uint32_t{x.bits} << 16);
  } else {
    return x;
  }
}

/// Rounds to nearest, ties to even.
template <class T>
__device__ T narrow(Arithmetic<T> x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return x;
  }
}

/// Calls f(T{}) with T the C++ type of a floating dtype that kernels take: f32, f64 or bf16.
template <class F>
decltype(auto) visit_stored(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f(bf16{});
  return visit_float(dtype, std::forward<F>(f));
}

/// Calls f(G{}) with G the C++ type of the dtype of a sum of T: T itself, or what arithmetic on it is made
/// in.
template <class T, class F>
void visit_sum(DType dtype, F&& f) {
  if (dtype == dtype_of<Arithmetic<T>>) return f(Arithmetic<T>{});
  PHX_CHECK(dtype == dtype_of<T>, "a sum of {} in {}", dtype_name(dtype_of<T>), dtype_name(dtype));
  f(T{});
}

/// Calls f(integral_constant N) with the elements of one access: 16 bytes where rows of `width` elements and
/// all tensors allow it, else 1.
template <class T, class F>
void with_pack(int64_t width, std::initializer_list<const Tensor*> tensors, F&& f) {
  constexpr int kFull = 16 / sizeof(T);
  const auto aligned = [](const Tensor* t) { return reinterpret_cast<uintptr_t>(t->address()) % 16 == 0; };
  if (width % kFull == 0 && std::all_of(tensors.begin(), tensors.end(), aligned)) {
    f(std::integral_constant<int, kFull>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

/// Accesses of a thread that are under way at once: loops over a row are unrolled so far.
inline constexpr int kInFlight = 4;

/// Threads of a block for rows of `packs` accesses: teams with a thread for each kInFlight of them, several
/// in a block when rows are short.
inline dim3 row_threads(int64_t packs) {
  constexpr int64_t kOfAWarp = kWarp * kInFlight;
  const auto team = std::clamp<int64_t>((packs + kOfAWarp - 1) / kOfAWarp * kWarp, kWarp, kMostThreads);
  return dim3(static_cast<unsigned>(team), static_cast<unsigned>(std::max<int64_t>(1, 256 / team)));
}

/// Blocks for `items`, `each` of them a block.
inline unsigned blocks_for(int64_t items, int64_t each) {
  return static_cast<unsigned>((items + each - 1) / each);
}

/// Blocks of so many threads for kernels in which a thread has a few columns (a pack of `packs` in a row),
/// along x, and rows are strided along y: what is read once a column stays in registers.
inline constexpr int kRowGridThreads = 256;
inline dim3 row_grid(int64_t rows, int64_t packs) {
  constexpr int64_t kMostBlocks = 132 * 32;
  const unsigned columns = blocks_for(packs, kRowGridThreads);
  const int64_t down = std::clamp<int64_t>(kMostBlocks / columns, 1, std::clamp<int64_t>(rows, 1, 65535));
  return dim3(columns, static_cast<unsigned>(down));
}

/// Two values that are reduced at once.
struct Two {
  double a;
  double b;
};

/// Shared memory of team_reduce.
template <class V>
struct TeamScratchOf {
  V warp[kMostThreads / kWarp];
};
using TeamScratch = TeamScratchOf<double>;

/// What the lane has whose number differs in the bit `step`.
__device__ inline double from_lane(double value, int step) { return __shfl_xor_sync(~0u, value, step); }
__device__ inline Two from_lane(Two value, int step) {
  return {from_lane(value.a, step), from_lane(value.b, step)};
}

/// The reduction of each team's values (double, or Two) by `op`, on all its threads, in a fixed order. All
/// threads of the block call it together; teams of one warp need no scratch. A block has at most kMostThreads
/// threads.
template <class V, class Op>
__device__ V team_reduce(V value, TeamScratchOf<V>& scratch, Op op) {
  for (int step = kWarp / 2; step > 0; step /= 2) value = op(value, from_lane(value, step));
  const int warps = blockDim.x / kWarp;
  if (warps == 1) return value;
  V* const mine = scratch.warp + threadIdx.y * warps;
  __syncthreads();  // a previous call's values have been read
  if (threadIdx.x % kWarp == 0) mine[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = mine[0];
  for (int w = 1; w < warps; ++w) value = op(value, mine[w]);
  return value;
}

struct Sum {
  __device__ double operator()(double a, double b) const { return a + b; }
  __device__ Two operator()(Two x, Two y) const { return {x.a + y.a, x.b + y.b}; }
};

struct Max {
  __device__ double operator()(double a, double b) const { return a > b ? a : b; }
};

/// Notes a broken promise; the first of a stream is kept.
__device__ inline void report(Fault* fault, FaultKind kind, long long value, long long limit) {
  int* const at = reinterpret_cast<int*>(&fault->kind);
  if (atomicCAS(at, static_cast<int>(FaultKind::none), static_cast<int>(kind)) != 0) return;
  fault->value = value;
  fault->limit = limit;
}

/// A row count read on the device, within its capacity.
__device__ inline int64_t live_rows(const int64_t* live, int64_t capacity, Fault* fault) {
  const int64_t n = *live;
  if (n >= 0 && n <= capacity) return n;
  if (blockIdx.x == 0 && threadIdx.x == 0) report(fault, FaultKind::live_rows, n, capacity);
  return n < 0 ? 0 : capacity;
}

}  // namespace phalanx::cuda
