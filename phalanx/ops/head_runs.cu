#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// Of T rows: `ranks` messages, and rows of `runs` runs of `width` elements. Rank r has run r / sharers.
struct Runs {
  int64_t rows;
  int64_t width;
  int64_t runs;
  int64_t ranks;
  int64_t sharers;
};

Runs runs_of(int64_t rows, int64_t width, int runs, int ranks) {
  return {.rows = rows, .width = width, .runs = runs, .ranks = ranks, .sharers = ranks / runs};
}

// A team has one rank's part of one row.
template <class T, int N>
__global__ void pack(const T* __restrict__ x, T* __restrict__ out, Runs s) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= s.ranks * s.rows) return;
  const int64_t rank = i / s.rows;
  const int64_t row = i - rank * s.rows;
  const T* const from = x + (row * s.runs + rank / s.sharers) * s.width;
#pragma unroll kInFlight
  for (int64_t c = int64_t{threadIdx.x} * N; c < s.width; c += int64_t{blockDim.x} * N) {
    store(out + i * s.width + c, load<T, N>(from + c));
  }
}

// A team has one run of one row; its sharers are summed in their order.
template <class T, int N>
__global__ void unpack(const T* __restrict__ y, T* __restrict__ out, Runs s) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= s.rows * s.runs) return;
  const int64_t row = i / s.runs;
  const int64_t rank = (i - row * s.runs) * s.sharers;
  const T* const from = y + (rank * s.rows + row) * s.width;
#pragma unroll kInFlight
  for (int64_t c = int64_t{threadIdx.x} * N; c < s.width; c += int64_t{blockDim.x} * N) {
    auto part = load<T, N>(from + c);
    Arithmetic<T> sum[N];
    for (int k = 0; k < N; ++k) sum[k] = widen(part.v[k]);
    for (int64_t other = 1; other < s.sharers; ++other) {
      part = load<T, N>(from + other * s.rows * s.width + c);
      for (int k = 0; k < N; ++k) sum[k] += widen(part.v[k]);
    }
    for (int k = 0; k < N; ++k) part.v[k] = narrow<T>(sum[k]);
    store(out + i * s.width + c, part);
  }
}

}  // namespace

Tensor pack_heads(const Tensor& x, int runs, int ranks) {
  const Runs s = runs_of(x.rows(), x.dim(1) / runs, runs, ranks);
  const Tensor out = Tensor::empty({s.ranks * s.rows, s.width}, x.dtype(), x.device());
  if (out.numel() == 0) return out;
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(s.width, {&x, &out}, [&](auto n) {
      const dim3 threads = row_threads(s.width / n);
      pack<T, n><<<blocks_for(out.rows(), threads.y), threads, 0, current_stream().native()>>>(
          x.device_data<T>(), out.device_data<T>(), s);
    });
  });
  check_launch("pack_heads");
  return out;
}

Tensor unpack_heads(const Tensor& y, int runs, int ranks) {
  const Runs s = runs_of(y.rows() / ranks, y.dim(1), runs, ranks);
  const Tensor out = Tensor::empty({s.rows, s.runs * s.width}, y.dtype(), y.device());
  if (out.numel() == 0) return out;
  visit_stored(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(s.width, {&y, &out}, [&](auto n) {
      const dim3 threads = row_threads(s.width / n);
      unpack<T, n><<<blocks_for(s.rows * s.runs, threads.y), threads, 0, current_stream().native()>>>(
          y.device_data<T>(), out.device_data<T>(), s);
    });
  });
  check_launch("unpack_heads");
  return out;
}

}  // namespace phalanx::cuda
