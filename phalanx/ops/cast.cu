#include "phalanx/ops/cast.h"

#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kElements = 8;  // of a thread

struct Same {
  template <class A>
  __device__ A operator()(A x) const {
    return x;
  }
};

// f64 becomes bf16 by way of f32.
template <class To, class From>
void convert_all(const Tensor& to, const Tensor& from) {
  const int64_t count = to.numel();
  if (count == 0) return;
  const auto launch = [&](auto n) {
    const unsigned blocks = blocks_for(count, int64_t{kElementwiseThreads} * n);
    elementwise_kernel<To, n><<<blocks, kElementwiseThreads, 0, current_stream().native()>>>(
        Same(), to.device_data<To>(), count, from.device_data<From>());
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
