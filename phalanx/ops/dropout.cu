#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/philox.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = kRowGridThreads;
constexpr int kWords = kPhiloxWords;

template <class T>
struct Arguments {
  const T* x;
  const int64_t* rows;
  T* y;
  int64_t count;  // of rows
  int64_t width;
  uint64_t key;
  uint64_t step;
  uint32_t threshold;
  double factor;
};

// Columns along x, N a thread: those of a whole counter (4), or one. Rows strided along y.
template <class T, int N>
__global__ void forward(Arguments<T> a) {
  using A = Arithmetic<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= a.width) return;
  for (int64_t r = blockIdx.y; r < a.count; r += gridDim.y) {
    const auto index = static_cast<uint64_t>(a.rows[r] * a.width + i);
    const PhiloxWords draws = philox_words(a.key, index / kWords, a.step);
    const auto x = load<T, N>(a.x + r * a.width + i);
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) {
      const uint32_t draw = draws.v[N == kWords ? k : static_cast<int>(index % kWords)];
      out.v[k] = narrow<T>(draw < a.threshold ? A(0) : widen(x.v[k]) * static_cast<A>(a.factor));
    }
    store(a.y + r * a.width + i, out);
  }
}

}  // namespace

Tensor dropout(const Tensor& x, const Tensor& rows, const DropoutSite& site) {
  const Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.numel() == 0) return y;
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const Arguments<T> arguments = {.x = x.device_data<T>(),
                                    .rows = rows.device_data<int64_t>(),
                                    .y = y.device_data<T>(),
                                    .count = x.rows(),
                                    .width = x.dim(1),
                                    .key = site.stream.key(),
                                    .step = site.step,
                                    .threshold = dropout_threshold(site.rate),
                                    .factor = 1 / (1 - site.rate)};
    const auto launch = [&](auto n) {
      forward<T, n><<<row_grid(x.rows(), x.dim(1) / n), kThreads, 0, current_stream().native()>>>(arguments);
    };
    const bool whole =
        x.dim(1) % kWords == 0 && reinterpret_cast<uintptr_t>(x.address()) % (kWords * sizeof(T)) == 0;
    if (whole) {
      launch(std::integral_constant<int, kWords>());
    } else {
      launch(std::integral_constant<int, 1>());
    }
  });
  check_launch("dropout");
  return y;
}

}  // namespace phalanx::cuda
