#include <limits>

#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/sum_parts.cuh"

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

__device__ float exp2_fast(float x) {
  float y = 0;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

struct Exp {
  template <class A>
  __device__ A operator()(A x) const {
    return exp(x);
  }
};

// By the unit that has 2^x, wrong by 2^-22 and by 2^-24 · |x|: for what goes to bf16.
struct FastExp {
  __device__ float operator()(float x) const { return exp2_fast(x * 1.44269504F); }
};

template <class T, int N, class E>
__device__ void add(LogSum<Arithmetic<T>>& s, const Pack<T, N>& x, E exponential) {
  using A = Arithmetic<T>;
  A max = widen(x.v[0]);
  for (int k = 1; k < N; ++k) max = fmax(max, widen(x.v[k]));
  if (max > s.max) {
    s.sum *= exponential(s.max - max);
    s.max = max;
  }
  const A shift = shift_of(s.max);
  for (int k = 0; k < N; ++k) s.sum += exponential(widen(x.v[k]) - shift);
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

// What a row's softmax is made of: its maximum, and Σ e^(x − max).
struct RowSums {
  double max;
  double sum;
};

// On all threads of the team, of what each has seen.
template <class A>
__device__ RowSums sums_of_row(const LogSum<A>& mine, TeamScratch& scratch) {
  const double max = team_reduce(static_cast<double>(mine.max), scratch, Max{});
  // Nothing stays nothing, however far its own maximum lies from the row's.
  const double rescaled = mine.sum == A(0) ? 0.0
                                           : static_cast<double>(mine.sum) *
                                                 exp(static_cast<double>(shift_of(mine.max)) - shift_of(max));
  return {max, team_reduce(rescaled, scratch, Sum{})};
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
    add(s, load<T, N>(x + i), Exp());
  }
  const RowSums row = sums_of_row(s, scratch);
  if (!mine || threadIdx.x != 0) return;
  const int32_t target = target_of(a, r);
  const int64_t local = target - a.first;
  const bool has_target = target != kIgnore && local >= 0 && local < a.width;
  const double of_target = has_target ? static_cast<double>(widen(x[local])) : 0.0;
  if (a.parts) {
    a.parts[3 * r] = row.max;
    a.parts[3 * r + 1] = row.sum;
    a.parts[3 * r + 2] = of_target;
    return;
  }
  const double log_sum = log(row.sum);
  a.log_sum_exp[2 * r] = static_cast<A>(row.max);
  a.log_sum_exp[2 * r + 1] = static_cast<A>(log_sum);
  a.losses[r] = target == kIgnore ? 0.0 : row.max - of_target + log_sum;
}

// The gradient of the logits that stand at column i, in their place. `column`: the target's, or none.
template <class T, int N, class E>
struct Gradient {
  using A = Arithmetic<T>;
  A log_sum_exp[2];  // as it is kept
  A scale;           // 0 where the target does not count
  int64_t column;
  E exponential = {};

  __device__ Pack<T, N> operator()(const Pack<T, N>& x, int64_t i) const {
    if (scale == A(0)) return {};
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) out.v[k] = narrow<T>(share(x.v[k]));
    if (column < i || column >= i + N) return out;
    for (int k = 0; k < N; ++k) {
      if (i + k == column) out.v[k] = narrow<T>(share(x.v[k]) - scale);
    }
    return out;
  }
  __device__ A share(T x) const { return exponential(widen(x) - log_sum_exp[0] - log_sum_exp[1]) * scale; }
};

template <class T, int N>
__global__ void backward(Arguments<T> a) {
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (r >= a.rows) return;
  using A = Arithmetic<T>;
  const int32_t target = target_of(a, r);
  const Gradient<T, N, Exp> gradient = {
      {a.log_sum_exp[2 * r], a.log_sum_exp[2 * r + 1]}, target == kIgnore ? A(0) : a.scale, target - a.first};
  T* const row = a.logits + r * a.width;
#pragma unroll kInFlight
  for (int64_t i = int64_t{threadIdx.x} * N; i < a.width; i += int64_t{blockDim.x} * N) {
    store(row + i, gradient(load<T, N>(row + i), i));
  }
}

// Both: a block has a row, the first `kept` elements of it in shared memory; the others are read again, out
// of the L2 cache.
template <class T, int N>
__global__ void __launch_bounds__(kMostThreads) forward_backward(Arguments<T> a, int64_t kept) {
  using A = Arithmetic<T>;
  using E = std::conditional_t<std::is_same_v<T, bf16>, FastExp, Exp>;
  extern __shared__ uint4 memory[];
  __shared__ TeamScratch scratch;
  auto* const cache = reinterpret_cast<Pack<T, N>*>(memory);
  const int64_t r = blockIdx.x;
  T* const row = a.logits + r * a.width;
  const int64_t first = int64_t{threadIdx.x} * N;
  const int64_t step = int64_t{blockDim.x} * N;
  LogSum<A> s = {no_max<A>(), A(0)};
#pragma unroll kInFlight
  for (int64_t i = first; i < kept; i += step) {
    const auto x = load<T, N>(row + i);
    cache[i / N] = x;
    add(s, x, E());
  }
  const int64_t behind = kept + first;
#pragma unroll kInFlight
  for (int64_t i = behind; i < a.width; i += step) add(s, load<T, N>(row + i), E());
  const int32_t target = target_of(a, r);
  const double of_target = target == kIgnore ? 0.0 : static_cast<double>(widen(row[target]));
  const RowSums sums = sums_of_row(s, scratch);  // behind it, all have read the target's logit
  const double log_sum = log(sums.sum);
  if (threadIdx.x == 0) a.losses[r] = target == kIgnore ? 0.0 : sums.max - of_target + log_sum;
  const Gradient<T, N, E> gradient = {
      {static_cast<A>(sums.max), static_cast<A>(log_sum)}, target == kIgnore ? A(0) : a.scale, target};
#pragma unroll kInFlight
  for (int64_t i = first; i < kept; i += step) store(row + i, gradient(cache[i / N], i));
#pragma unroll kInFlight
  for (int64_t i = behind; i < a.width; i += step) store(row + i, gradient(load<T, N>(row + i), i));
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
  sum_parts(losses, out.loss_sum);
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

Tensor cross_entropy_gradient_into(const Tensor& logits, const Tensor& targets, double scale) {
  const Tensor sum = Tensor::zeros({1}, DType::f64, logits.device());
  if (logits.rows() == 0) return sum;
  const Tensor losses = Tensor::empty({logits.rows()}, DType::f64, logits.device());
  CUstream_st* const stream = current_stream().native();
  visit_stored(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(logits.dim(1), {&logits}, [&](auto n) {
      // With two blocks on an SM, one reads while the other writes.
      constexpr int64_t kMostKept = (size_t{112} << 10) / sizeof(T) / n * n;
      Arguments<T> a = arguments_of<T>(logits, targets, {});
      a.losses = losses.device_data<double>();
      a.scale = static_cast<Arithmetic<T>>(scale);
      const int64_t kept = std::min(a.width, kMostKept);
      const auto bytes = static_cast<size_t>(kept) * sizeof(T);
      constexpr auto kKernel = forward_backward<T, n>;
      check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kMostKept * sizeof(T))),
            "cross_entropy_gradient_into");
      kKernel<<<static_cast<unsigned>(a.rows), kMostThreads, bytes, stream>>>(a, kept);
      check_launch("cross_entropy_gradient_into");
    });
  });
  sum_parts(losses, sum);
  return sum;
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
