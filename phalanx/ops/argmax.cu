#include <limits>

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/dependents.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kPart = 4096;  // elements of a row that a block looks through

// The best of what was seen so far.
template <class A>
struct Best {
  A value;
  int32_t index;  // −1: nothing but NaN
};

// The larger, of equal ones the lower. NaN is not given.
template <class A>
__device__ Best<A> better(Best<A> a, Best<A> b) {
  if (b.index < 0) return a;
  if (a.index < 0) return b;
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.index < b.index ? a : b;
}

// The best of the block, on its first thread.
template <class A>
__device__ Best<A> best_of_block(Best<A> mine) {
  __shared__ Best<A> of_warps[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Best<A> other = {__shfl_xor_sync(~0u, mine.value, step), __shfl_xor_sync(~0u, mine.index, step)};
    mine = better(mine, other);
  }
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / kWarp; ++w) mine = better(mine, of_warps[w]);
  }
  return mine;
}

// Block (part, row).
template <class T>
__global__ void __launch_bounds__(kThreads)
    best_of_parts(const T* x, Best<Arithmetic<T>>* parts, int64_t width) {
  using A = Arithmetic<T>;
  let_next_start();
  wait_for_kernel();
  const int64_t begin = int64_t{blockIdx.x} * kPart;
  const int64_t end = min(width, begin + kPart);
  const T* const row = x + int64_t{blockIdx.y} * width;
  Best<A> mine = {A(0), -1};
  constexpr int kEach = kPart / kThreads;
  A values[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int64_t i = begin + j * kThreads + threadIdx.x;
    values[j] = i < end ? widen(row[i]) : A(NAN);
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int64_t i = begin + j * kThreads + threadIdx.x;
    if (!isnan(values[j])) mine = better(mine, {values[j], static_cast<int32_t>(i)});
  }
  mine = best_of_block(mine);
  if (threadIdx.x == 0) parts[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = mine;
}

// A block a row.
template <class A>
__global__ void __launch_bounds__(kThreads) best_of_row(const Best<A>* parts, int32_t* out, int64_t count) {
  let_next_start();
  wait_for_kernel();
  Best<A> mine = {A(0), -1};
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    mine = better(mine, parts[int64_t{blockIdx.x} * count + i]);
  }
  mine = best_of_block(mine);
  if (threadIdx.x == 0) out[blockIdx.x] = mine.index < 0 ? 0 : mine.index;
}

struct Advance {
  int32_t* tokens;
  int32_t* positions;
  int32_t* text;
  const int32_t* chosen;
  int64_t count;
  int64_t columns;
  Fault* fault;
};

__global__ void advance(Advance a) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b >= a.count) return;
  const int64_t position = int64_t{a.positions[b]} + 1;
  if (position < 0 || position >= a.columns) return report(a.fault, FaultKind::position, position, 0);
  const int32_t token = a.chosen[b];
  a.text[b * a.columns + position] = token;
  a.tokens[b] = token;
  a.positions[b] = static_cast<int32_t>(position);
}

}  // namespace

void argmax_into(const Tensor& chosen, const Tensor& x) {
  if (x.rows() == 0) return;
  const int64_t width = x.dim(1);
  PHX_CHECK(width < INT32_MAX && x.rows() < 65536, "argmax of {}", x.shape());
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using B = Best<Arithmetic<T>>;
    const unsigned count = blocks_for(width, kPart);
    const Tensor parts =
        Tensor::empty({x.rows() * count, static_cast<int64_t>(sizeof(B))}, DType::u8, x.device());
    auto* const at = reinterpret_cast<B*>(parts.address());
    const auto rows = static_cast<unsigned>(x.rows());
    const Grid of_parts = {.blocks = dim3(count, rows), .threads = dim3(kThreads)};
    launch_early("argmax", best_of_parts<T>, of_parts, x.device_data<T>(), at, width);
    const Grid of_rows = {.blocks = dim3(rows), .threads = dim3(kThreads)};
    launch_early("argmax", best_of_row<Arithmetic<T>>, of_rows, at, chosen.device_data<int32_t>(),
                 int64_t{count});
  });
}

void advance_into(const DecodeRows& rows, const Tensor& chosen) {
  if (chosen.numel() == 0) return;
  Stream& stream = current_stream();
  const Advance a = {.tokens = rows.tokens.device_data<int32_t>(),
                     .positions = rows.positions.device_data<int32_t>(),
                     .text = rows.text_BC.device_data<int32_t>(),
                     .chosen = chosen.device_data<int32_t>(),
                     .count = chosen.numel(),
                     .columns = rows.text_BC.dim(1),
                     .fault = stream.fault()};
  advance<<<blocks_for(a.count, kWarp), kWarp, 0, stream.native()>>>(a);
  check_launch("advance");
}

}  // namespace phalanx::cuda
