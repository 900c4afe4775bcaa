#include "phalanx/ops/column_sums.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = kRowGridThreads;
constexpr int64_t kMostParts = 512;

// Columns along x, rows strided along y.
template <class T, int N>
__global__ void forward(T* y, const T* __restrict__ b, int64_t rows, int64_t width) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= width) return;
  const auto bias = load<T, N>(b + i);
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    auto row = load<T, N>(y + r * width + i);
    for (int k = 0; k < N; ++k) row.v[k] = narrow<T>(widen(row.v[k]) + widen(bias.v[k]));
    store(y + r * width + i, row);
  }
}

// Each block of y sums rows_a_part rows, in their order.
template <class T, int N>
__global__ void sum_rows(const T* __restrict__ dy, Arithmetic<T>* parts, int64_t rows, int64_t width,
                         int64_t rows_a_part) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= width) return;
  const int64_t first = blockIdx.y * rows_a_part;
  const int64_t end = min(rows, first + rows_a_part);
  Pack<Arithmetic<T>, N> sum{};
#pragma unroll 8
  for (int64_t r = first; r < end; ++r) {
    const auto row = load<T, N>(dy + r * width + i);
    for (int k = 0; k < N; ++k) sum.v[k] += widen(row.v[k]);
  }
  for (int k = 0; k < N; ++k) parts[blockIdx.y * width + i + k] = sum.v[k];
}

}  // namespace

void add_bias_into(const Tensor& y, const Tensor& b) {
  if (y.numel() == 0) return;
  const int64_t width = y.dim(1);
  visit_stored(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(width, {&y, &b}, [&](auto n) {
      const dim3 grid = row_grid(y.rows(), width / n);
      forward<T, n><<<grid, kThreads, 0, current_stream().native()>>>(y.device_data<T>(), b.device_data<T>(),
                                                                      y.rows(), width);
    });
  });
  check_launch("add_bias_into");
}

void bias_backward_into(const Tensor& db, const Tensor& dy) {
  if (dy.numel() == 0) return;
  const int64_t width = dy.dim(1);
  const int64_t rows_a_part = (dy.rows() + kMostParts - 1) / kMostParts;
  const int64_t count = (dy.rows() + rows_a_part - 1) / rows_a_part;
  visit_stored(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const Tensor parts = Tensor::empty({count, width}, dtype_of<Arithmetic<T>>, dy.device());
    with_pack<T>(width, {&dy}, [&](auto n) {
      const dim3 grid(blocks_for(width / n, kThreads), static_cast<unsigned>(count));
      sum_rows<T, n><<<grid, kThreads, 0, current_stream().native()>>>(
          dy.device_data<T>(), parts.device_data<Arithmetic<T>>(), dy.rows(), width, rows_a_part);
    });
    check_launch("bias_backward_into");
    add_parts<T>(db, parts);
  });
}

}  // namespace phalanx::cuda
