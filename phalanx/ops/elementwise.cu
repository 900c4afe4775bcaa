#include "phalanx/ops/elementwise.cuh"

#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/sum_parts.cuh"

namespace phalanx::cuda {
namespace {

struct Add {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};

struct Scale {
  double factor;
  template <class A>
  __device__ A operator()(A a) const {
    return a * static_cast<A>(factor);
  }
};

constexpr int64_t kMostParts = 1024;

// parts[block] = the squares of the block's elements, in an order that the shape gives.
template <class T>
__global__ void squares(const T* x, int64_t count, double* parts) {
  __shared__ TeamScratch scratch;
  double sum = 0;
  const int64_t step = int64_t{gridDim.x} * kMostThreads;
#pragma unroll kInFlight
  for (int64_t i = int64_t{blockIdx.x} * kMostThreads + threadIdx.x; i < count; i += step) {
    const auto v = static_cast<double>(widen(x[i]));
    sum = fma(v, v, sum);
  }
  sum = team_reduce(sum, scratch, Sum{});
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  const Tensor y = Tensor::empty(a.shape(), a.dtype(), a.device());
  elementwise("add", Add(), y, a, b);
  return y;
}

void add_into(const Tensor& x, const Tensor& y) { elementwise("add_into", Add(), x, x, y); }

void scale_into(const Tensor& x, double factor) { elementwise("scale_into", Scale{factor}, x, x); }

Tensor sum_of_squares(const Tensor& x) {
  const int64_t parts = std::clamp<int64_t>((x.numel() + kMostThreads - 1) / kMostThreads, 1, kMostParts);
  const Tensor sum = Tensor::empty({1}, DType::f64, x.device());
  const Tensor of_parts = Tensor::empty({parts}, DType::f64, x.device());
  double* const part = of_parts.device_data<double>();
  CUstream_st* const stream = current_stream().native();
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    squares<T>
        <<<static_cast<unsigned>(parts), kMostThreads, 0, stream>>>(x.device_data<T>(), x.numel(), part);
  });
  check_launch("sum_of_squares");
  sum_parts(of_parts, sum);
  return sum;
}

}  // namespace phalanx::cuda
