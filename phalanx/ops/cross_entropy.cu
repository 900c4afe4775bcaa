#include <limits>

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// Σ e^(x − max) over what one thread has seen.
template <class T>
struct LogSum {
  T max;
  T sum;
};

template <class T>
__device__ T no_max() {
  return -std::numeric_limits<T>::infinity();
}

template <class T>
__device__ T shift_of(T max) {
  return max == no_max<T>() ? T{0} : max;  // logits that are all −∞ have no maximum to subtract
}

template <class T, int N>
__device__ void add(LogSum<Arithmetic<T>>& s, const Pack<T, N>& x) {
  using A = Arithmetic<T>;
  A max = widen(x.v[0]);
  for (int k = 1; k < N; ++k) max = widen(x.v[k]) > max ? widen(x.v[k]) : max;
  if (max > s.max) {
    s.sum *= exp(s.max - max);
    s.max = max;
  }
  const A shift = shift_of(s.max);
  for (int k = 0; k < N; ++k) s.sum += exp(widen(x.v[k]) - shift);
}

template <class T>
struct Arguments {
  T* logits;
  const int32_t* targets;
  Arithmetic<T>* log_sum_exp;  // [rows, 2]
  double* losses;              // [rows], of forward
  double* parts;               // [rows, 3], of forward, instead: cross_entropy_part's
  int64_t rows;
  int64_t width;
  int64_t first;        // the token of the first logit
  int64_t vocabulary;   // all tokens, of which the logits may be a part
  Arithmetic<T> scale;  // of backward
  Fault* fault;
};

// The target of a row; kIgnore, and a report, when it is none.
template <class T>
__device__ int32_t target_of(const Arguments<T>& a, int64_t r) {
  const int32_t target = a.targets[r];
  if (target == kIgnore || (target >= 0 && target < a.vocabulary)) return target;
  if (threadIdx.x == 0) report(a.fault, FaultKind::target, target, a.vocabulary);
  return kIgnore;
}

// One team a row, which is read once.
template <class T, int N>
__global__ void forward(Arguments<T> a) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool mine = r < a.rows;
  const T* const __restrict__ x = a.logits + r * a.width;
  const int64_t end = mine ? a.width : 0;
  LogSum<A> s = {no_max<A>(), A(0)};
#pragma unroll kInFlight
  for (int64_t i = int64_t{threadIdx.x} * N; i < end; i += int64_t{blockDim.x} * N) {
    add(s, load<T, N>(x + i));
  }
  const double max = team_reduce(static_cast<double>(s.max), scratch, Max{});
  const double shift = shift_of(max);
  // Nothing stays nothing, however far its own maximum lies from the row's.
  const double rescaled =
      s.sum == A(0) ? 0.0 : static_cast<double>(s.sum) * exp(static_cast<double>(shift_of(s.max)) - shift);
  const double sum = team_reduce(rescaled, scratch, Sum{});
  if (!mine || threadIdx.x != 0) return;
  const int32_t target = target_of(a, r);
  const int64_t local = target - a.first;
  const bool has_target = target != kIgnore && local >= 0 && local < a.width;
  const double of_target = has_target ? static_cast<double>(widen(x[local])) : 0.0;
  if (a.parts) {
    a.parts[3 * r] = max;
    a.parts[3 * r + 1] = sum;
    a.parts[3 * r + 2] = of_target;
    return;
  }
  const double log_sum = log(sum);
  a.log_sum_exp[2 * r] = static_cast<A>(max);
  a.log_sum_exp[2 * r + 1] = static_cast<A>(log_sum);
  a.losses[r] = target == kIgnore ? 0.0 : max - of_target + log_sum;
}

template <class T, int N>
__global__ void backward(Arguments<T> a) {
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (r >= a.rows) return;
  const int32_t target = target_of(a, r);
  const int64_t local = target - a.first;
  using A = Arithmetic<T>;
  const A max = a.log_sum_exp[2 * r];
  const A log_sum = a.log_sum_exp[2 * r + 1];
  T* const row = a.logits + r * a.width;
#pragma unroll kInFlight
  for (int64_t i = int64_t{threadIdx.x} * N; i < a.width; i += int64_t{blockDim.x} * N) {
    auto x = load<T, N>(row + i);
    for (int k = 0; k < N; ++k) {
      const A p = exp(widen(x.v[k]) - max - log_sum) * a.scale;
      x.v[k] = narrow<T>(target == kIgnore ? A(0) : i + k == local ? p - a.scale : p);
    }
    store(row + i, x);
  }
}

// One block: the sum of all rows' losses, in a fixed order.
__global__ void add_losses(const double* losses, int64_t rows, double* sum) {
  __shared__ TeamScratch scratch;
  double mine = 0;
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) mine += losses[r];
  mine = team_reduce(mine, scratch, Sum{});
  if (threadIdx.x == 0) *sum = mine;
}

template <class T>
Arguments<T> arguments_of(const Tensor& logits, const Tensor& targets, VocabularyPart part) {
  return {.logits = logits.device_data<T>(),
          .targets = targets.device_data<int32_t>(),
          .log_sum_exp = nullptr,
          .losses = nullptr,
          .parts = nullptr,
          .rows = logits.rows(),
          .width = logits.dim(1),
          .first = part.first,
          .vocabulary = part.vocabulary(logits.dim(1)),
          .scale = 0,
          .fault = current_stream().fault()};
}

}  // namespace

CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets) {
  const DType kept = logits.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const CrossEntropy out = {Tensor::zeros({1}, DType::f64, logits.device()),
                            Tensor::empty({logits.rows(), 2}, kept, logits.device())};
  if (logits.rows() == 0) return out;
  const Tensor losses = Tensor::empty({logits.rows()}, DType::f64, logits.device());
  CUstream_st* const stream = current_stream().native();
  visit_stored(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(logits.dim(1), {&logits}, [&](auto n) {
      Arguments<T> a = arguments_of<T>(logits, targets, {});
      a.log_sum_exp = out.log_sum_exp_T2.device_data<Arithmetic<T>>();
      a.losses = losses.device_data<double>();
      const dim3 threads = row_threads(a.width / n);
      forward<T, n><<<blocks_for(a.rows, threads.y), threads, 0, stream>>>(a);
      check_launch("cross_entropy");
    });
  });
  add_losses<<<1, kMostThreads, 0, stream>>>(losses.device_data<double>(), logits.rows(),
                                             out.loss_sum.device_data<double>());
  check_launch("cross_entropy");
  return out;
}

Tensor cross_entropy_part(const Tensor& logits, const Tensor& targets, VocabularyPart part) {
  const Tensor sums = Tensor::empty({logits.rows(), 3}, DType::f64, logits.device());
  if (logits.rows() == 0) return sums;
  visit_stored(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(logits.dim(1), {&logits}, [&](auto n) {
      Arguments<T> a = arguments_of<T>(logits, targets, part);
      a.parts = sums.device_data<double>();
      const dim3 threads = row_threads(a.width / n);
      forward<T, n><<<blocks_for(a.rows, threads.y), threads, 0, current_stream().native()>>>(a);
    });
  });
  check_launch("cross_entropy_part");
  return sums;
}

void cross_entropy_backward_into(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exp,
                                 double scale, VocabularyPart part) {
  if (logits.numel() == 0) return;
  visit_stored(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(logits.dim(1), {&logits}, [&](auto n) {
      Arguments<T> a = arguments_of<T>(logits, targets, part);
      a.log_sum_exp = log_sum_exp.device_data<Arithmetic<T>>();
      a.scale = static_cast<Arithmetic<T>>(scale);
      const dim3 threads = row_threads(a.width / n);
      backward<T, n><<<blocks_for(a.rows, threads.y), threads, 0, current_stream().native()>>>(a);
      check_launch("cross_entropy_backward");
    });
  });
}

}  // namespace phalanx::cuda
