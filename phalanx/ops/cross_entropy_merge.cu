// Cross-entropy of rows whose logits lie in parts on several ranks: what the parts have told, put together.
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/sum_parts.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

// One thread a row; of each part its maximum, its sum and its target's logit. Parts are summed in their
// order.
template <class A>
__global__ void merge(const double* parts, int64_t count, const int32_t* targets, int64_t rows,
                      A* log_sum_exps, double* losses) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  const auto of_part = [&](int64_t p) { return parts + 3 * (p * rows + r); };
  double max = of_part(0)[0];
  for (int64_t p = 1; p < count; ++p) max = Max{}(max, of_part(p)[0]);
  double sum = 0;
  double of_target = 0;
  for (int64_t p = 0; p < count; ++p) {
    const double* const part = of_part(p);
    sum += part[0] == max ? part[1] : part[1] * exp(part[0] - max);
    of_target += part[2];
  }
  const double log_sum = log(sum);
  log_sum_exps[2 * r] = static_cast<A>(max);
  log_sum_exps[2 * r + 1] = static_cast<A>(log_sum);
  losses[r] = targets[r] == kIgnore ? 0.0 : max - of_target + log_sum;
}

}  // namespace

CrossEntropy merge_cross_entropy(const Tensor& parts_RT3, const Tensor& targets, DType dtype) {
  const Device device = parts_RT3.device();
  const int64_t rows = targets.numel();
  const DType kept = dtype == DType::f64 ? DType::f64 : DType::f32;
  const CrossEntropy out = {Tensor::zeros({1}, DType::f64, device), Tensor::empty({rows, 2}, kept, device)};
  if (rows == 0) return out;
  const Tensor losses = Tensor::empty({rows}, DType::f64, device);
  visit_float(kept, [&](auto zero) {
    merge<<<blocks_for(rows, kThreads), kThreads, 0, current_stream().native()>>>(
        parts_RT3.device_data<double>(), parts_RT3.dim(0), targets.device_data<int32_t>(), rows,
        out.log_sum_exp_T2.device_data<decltype(zero)>(), losses.device_data<double>());
  });
  check_launch("merge_cross_entropy");
  sum_parts(losses, out.loss_sum);
  return out;
}

}  // namespace phalanx::cuda
