#include "phalanx/ops/cast.h"

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kElements = 8;  // of a thread

template <class To, class From>
__device__ To converted(From x) {
  if constexpr (std::is_same_v<To, bf16>) {
    return narrow<bf16>(static_cast<float>(x));
  } else {
    return static_cast<To>(widen(x));
  }
}

template <class To, class From, int N>
__global__ void convert(To* to, const From* __restrict__ from, int64_t count) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i + N <= count) {
    const auto in = load<From, N>(from + i);
    Pack<To, N> out;
    for (int k = 0; k < N; ++k) out.v[k] = converted<To>(in.v[k]);
    store(to + i, out);
  } else {
    for (int64_t j = i; j < count; ++j) to[j] = converted<To>(from[j]);
  }
}

template <class To, class From>
void convert_all(const Tensor& to, const Tensor& from) {
  const int64_t count = to.numel();
  if (count == 0) return;
  const auto launch = [&](auto n) {
    convert<To, From, n>
        <<<blocks_for(count, kThreads * int64_t{n}), kThreads, 0, current_stream().native()>>>(
            to.device_data<To>(), from.device_data<From>(), count);
  };
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0; };
  if (aligned(to) && aligned(from)) {
    launch(std::integral_constant<int, kElements>());
  } else {
    launch(std::integral_constant<int, 1>());
  }
  check_launch("a cast");
}

}  // namespace

void narrow_into(const Tensor& y, const Tensor& x) {
  visit_float(x.dtype(), [&](auto t) { convert_all<bf16, decltype(t)>(y, x); });
}

void widen_into(const Tensor& y, const Tensor& x) {
  visit_float(y.dtype(), [&](auto t) { convert_all<decltype(t), bf16>(y, x); });
}

}  // namespace phalanx::cuda
