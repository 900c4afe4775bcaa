#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/expert_rows.cuh"

namespace phalanx::cuda {
namespace {

// Reads the row twice; the second time it is near.
template <class T>
__global__ void forward(const T* logits, T* log_sum_exp, int64_t rows, int64_t experts) {
  const int64_t r = expert_row();
  if (r >= rows) return;  // a whole warp
  const T* const row = logits + r * experts;
  T max = -std::numeric_limits<T>::infinity();
  for (int64_t e = threadIdx.x; e < experts; e += kWarp) max = row[e] > max ? row[e] : max;
  max = warp_max(max);
  T sum = 0;
  for (int64_t e = threadIdx.x; e < experts; e += kWarp) sum += exp(row[e] - max);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) log_sum_exp[r] = max + log(sum);
}

// By logit e of a row: 2 · scale · logsumexp · softmax_e.
template <class T>
__global__ void backward(const T* logits, const T* log_sum_exp, T twice_scale, T* dlogits, int64_t rows,
                         int64_t experts) {
  const int64_t r = expert_row();
  if (r >= rows) return;
  const T lse = log_sum_exp[r];
  const T factor = twice_scale * lse;
  for (int64_t i = r * experts + threadIdx.x; i < (r + 1) * experts; i += kWarp) {
    dlogits[i] = fma(factor, exp(logits[i] - lse), dlogits[i]);
  }
}

// One block: the sum of squares, in a fixed order.
template <class T>
__global__ void add_squares(const T* x, int64_t count, double* sum) {
  __shared__ TeamScratch scratch;
  double mine = 0;
#pragma unroll kInFlight
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const auto v = static_cast<double>(x[i]);
    mine = fma(v, v, mine);
  }
  mine = team_reduce(mine, scratch, Sum{});
  if (threadIdx.x == 0) *sum = mine;
}

}  // namespace

Tensor log_sum_exp(const Tensor& logits) {
  const Tensor out = Tensor::empty({logits.rows()}, logits.dtype(), logits.device());
  if (out.numel() == 0) return out;
  visit_float(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    forward<<<blocks_for(logits.rows(), kRowsOfBlock), expert_row_threads(), 0, current_stream().native()>>>(
        logits.device_data<T>(), out.device_data<T>(), logits.rows(), logits.dim(1));
  });
  check_launch("log_sum_exp");
  return out;
}

Tensor z_loss(const Tensor& lse) {
  const Tensor sum = Tensor::empty({1}, DType::f64, lse.device());
  visit_float(lse.dtype(), [&](auto zero) {
    using T = decltype(zero);
    add_squares<<<1, kMostThreads, 0, current_stream().native()>>>(lse.device_data<T>(), lse.numel(),
                                                                   sum.device_data<double>());
  });
  check_launch("z_loss");
  return sum;
}

void z_loss_backward_into(const Tensor& dlogits, const Tensor& logits, const Tensor& lse, double scale) {
  if (logits.numel() == 0) return;
  visit_float(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    backward<<<blocks_for(logits.rows(), kRowsOfBlock), expert_row_threads(), 0, current_stream().native()>>>(
        logits.device_data<T>(), lse.device_data<T>(), static_cast<T>(2 * scale), dlogits.device_data<T>(),
        logits.rows(), logits.dim(1));
  });
  check_launch("z_loss_backward");
}

}  // namespace phalanx::cuda
