// One function of the elements of some tensors of one shape.
#pragma once

#include <string_view>

#include "phalanx/ops/cuda_kernels.cuh"

namespace phalanx::cuda {

inline constexpr int kElementwiseThreads = 256;

/// The thread behind the last whole access does the elements that are left.
template <class T, int N, class F, class... In>
__global__ void elementwise_kernel(F f, T* out, int64_t count, const In*... in) {
  const int64_t i = (int64_t{blockIdx.x} * kElementwiseThreads + threadIdx.x) * N;
  if (i + N <= count) {
    Pack<T, N> result;
    const auto compute = [&](const auto&... packs) {
      for (int k = 0; k < N; ++k)
        result.v[k] = narrow<T>(static_cast<Arithmetic<T>>(f(widen(packs.v[k])...)));
    };
    compute(load<In, N>(in + i)...);
    store(out + i, result);
  } else {
    for (int64_t j = i; j < count; ++j) out[j] = narrow<T>(static_cast<Arithmetic<T>>(f(widen(in[j])...)));
  }
}

/// out[i] = f(in[i]…) for tensors of one dtype and number of elements, out among them or not. f is given
/// values in the dtype's arithmetic.
template <class F, class... In>
void elementwise(std::string_view kernel, const F& f, const Tensor& out, const In&... in) {
  const int64_t count = out.numel();
  if (count == 0) return;
  visit_stored(out.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(0, {&out, &in...}, [&](auto n) {
      const unsigned blocks = blocks_for(count, int64_t{kElementwiseThreads} * n);
      elementwise_kernel<T, n><<<blocks, kElementwiseThreads, 0, current_stream().native()>>>(
          f, out.device_data<T>(), count, in.template device_data<T>()...);
    });
  });
  check_launch(kernel);
}

}  // namespace phalanx::cuda
