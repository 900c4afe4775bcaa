// What attention in bf16 needs around cuDNN: parts of softmax put together, and the log-sum-exp in another
// order.
#include <limits>

#include "phalanx/ops/attention_cudnn.h"
#include "phalanx/ops/elementwise.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// A warp has one head of one row: y [count, value_dim], log_sum_exp [count].
template <class T>
__global__ void merge(T* y, float* log_sum_exp, const bf16* part_y, const float* part_log_sum_exp,
                      int64_t count, int64_t value_dim) {
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (i >= count) return;
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const float theirs = part_log_sum_exp[i];
  if (theirs == kNone) return;
  const float ours = log_sum_exp[i];
  const float largest = fmaxf(ours, theirs);
  const float our_share = ours == kNone ? 0 : expf(ours - largest);
  const float their_share = expf(theirs - largest);
  const float sum = our_share + their_share;
  __syncwarp();  // all lanes have read it
  if (threadIdx.x % kWarp == 0) log_sum_exp[i] = largest + logf(sum);
  const float our_weight = our_share / sum;
  const float their_weight = their_share / sum;
  for (int64_t c = threadIdx.x % kWarp; c < value_dim; c += kWarp) {
    const int64_t at = i * value_dim + c;
    y[at] = narrow<T>(our_weight * widen(y[at]) + their_weight * widen(part_y[at]));
  }
}

struct Plus {
  __device__ float operator()(float a, float b) const { return a + b; }
};

constexpr int kElements = 8;  // of a thread

template <class T>
void add_part(const Tensor& sum, const Tensor& part) {
  T* const to = sum.device_data<T>();
  const bf16* const from = part.device_data<bf16>();
  const auto launch = [&](auto n) {
    const unsigned blocks = blocks_for(sum.numel(), int64_t{kElementwiseThreads} * n);
    elementwise_kernel<T, n>
        <<<blocks, kElementwiseThreads, 0, current_stream().native()>>>(Plus(), to, sum.numel(), to, from);
  };
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0; };
  if (aligned(sum) && aligned(part)) {
    launch(std::integral_constant<int, kElements>());
  } else {
    launch(std::integral_constant<int, 1>());
  }
  check_launch("attention_backward_into");
}

struct HeadsFirst {
  int64_t heads;
  int64_t queries;
  int64_t step;       // rows from one sequence to the next
  int64_t row_heads;  // that a row of `from` has
};
__global__ void to_heads_first(float* to, const float* from, HeadsFirst shape) {
  const int64_t query = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (query >= shape.queries) return;
  const int64_t head = blockIdx.y;
  const int64_t sequence = blockIdx.z;
  to[(sequence * shape.heads + head) * shape.queries + query] =
      from[(sequence * shape.step + query) * shape.row_heads + head];
}

}  // namespace

void merge_attended(const Attended& sums, const Attended& part, int64_t value_dim) {
  const int64_t count = part.log_sum_exp_TH.numel();
  if (count == 0) return;
  visit_sum<bf16>(sums.y_THd.dtype(), [&](auto zero) {
    using T = decltype(zero);
    merge<T><<<blocks_for(count, kWarps), kThreads, 0, current_stream().native()>>>(
        sums.y_THd.device_data<T>(), sums.log_sum_exp_TH.device_data<float>(), part.y_THd.device_data<bf16>(),
        part.log_sum_exp_TH.device_data<float>(), count, value_dim);
  });
  check_launch("attention_into");
}

void add_part_into(const Tensor& sum, const Tensor& part) {
  if (sum.numel() == 0) return;
  visit_sum<bf16>(sum.dtype(), [&](auto zero) { add_part<decltype(zero)>(sum, part); });
}

Tensor heads_first(const AttentionCall& c, const float* log_sum_exp, Device device) {
  const Tensor out = Tensor::empty({c.batch, c.heads, c.queries}, DType::f32, device);
  const dim3 grid(blocks_for(c.queries, kThreads), static_cast<unsigned>(c.heads),
                  static_cast<unsigned>(c.batch));
  to_heads_first<<<grid, kThreads, 0, current_stream().native()>>>(
      out.device_data<float>(), log_sum_exp,
      {.heads = c.heads, .queries = c.queries, .step = c.query_step, .row_heads = c.row_heads});
  check_launch("attention_backward");
  return out;
}

}  // namespace phalanx::cuda
