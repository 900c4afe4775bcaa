#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// Columns along x, rows strided along y up to the live count.
constexpr int kThreads = kRowGridThreads;

template <class T>
__device__ T logistic(T x) {
  return T{1} / (T{1} + exp(-x));
}

template <class T>
struct Arguments {
  const T* gate_up;
  const T* dy;  // of backward
  T* out;
  const int64_t* live;
  int64_t capacity;
  int64_t width;
  Fault* fault;
};

template <class T, int N>
__global__ void forward(Arguments<T> a) {
  const int64_t rows = live_rows(a.live, a.capacity, a.fault);
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= a.width) return;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const T* const gate = a.gate_up + r * 2 * a.width + i;
    const auto x = load<T, N>(gate);
    const auto up = load<T, N>(gate + a.width);
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) {
      const Arithmetic<T> xk = widen(x.v[k]);
      out.v[k] = narrow<T>(xk * logistic(xk) * widen(up.v[k]));
    }
    store(a.out + r * a.width + i, out);
  }
}

// With s the logistic function of gate: silu'(gate) = s + gate·s·(1 − s).
template <class T, int N>
__global__ void backward(Arguments<T> a) {
  const int64_t rows = live_rows(a.live, a.capacity, a.fault);
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= a.width) return;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const T* const gate = a.gate_up + r * 2 * a.width + i;
    const auto x = load<T, N>(gate);
    const auto up = load<T, N>(gate + a.width);
    const auto g = load<T, N>(a.dy + r * a.width + i);
    Pack<T, N> dgate;
    Pack<T, N> dup;
    for (int k = 0; k < N; ++k) {
      using A = Arithmetic<T>;
      const A s = logistic(widen(x.v[k]));
      const A silu = widen(x.v[k]) * s;
      const A gk = widen(g.v[k]);
      dgate.v[k] = narrow<T>(gk * widen(up.v[k]) * (s + silu * (A(1) - s)));
      dup.v[k] = narrow<T>(gk * silu);
    }
    T* const to = a.out + r * 2 * a.width + i;
    store(to, dgate);
    store(to + a.width, dup);
  }
}

template <class T>
struct WeightedArguments {
  Arguments<T> rows;     // out: the gradient of gate_up
  const int64_t* slots;  // of each row
  const Arithmetic<T>* weights;
  Arithmetic<T>* dweights;
  T* weighted;
};

// A team of threads for each row, whose weight's gradient is a sum over it.
template <class T, int N>
__global__ void __launch_bounds__(kMostThreads) weighted_backward(WeightedArguments<T> w) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const Arguments<T>& a = w.rows;
  const int64_t rows = live_rows(a.live, a.capacity, a.fault);
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t end = r < rows ? a.width : 0;
  const int64_t slot = r < rows ? w.slots[r] : 0;
  const A weight = r < rows ? w.weights[slot] : A(0);
  A dot = 0;
  for (int64_t i = int64_t{threadIdx.x} * N; i < end; i += int64_t{blockDim.x} * N) {
    const T* const gate = a.gate_up + r * 2 * a.width + i;
    const auto x = load<T, N>(gate);
    const auto up = load<T, N>(gate + a.width);
    const auto g = load<T, N>(a.dy + r * a.width + i);
    Pack<T, N> dgate;
    Pack<T, N> dup;
    Pack<T, N> weighted;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A s = logistic(widen(x.v[k]));
      const A silu = widen(x.v[k]) * s;
      const A upk = widen(up.v[k]);
      const A gk = widen(g.v[k]);
      const A y = silu * upk;
      dgate.v[k] = narrow<T>(weight * gk * upk * (s + silu * (A(1) - s)));
      dup.v[k] = narrow<T>(weight * gk * silu);
      weighted.v[k] = narrow<T>(weight * y);
      dot = fma(gk, y, dot);
    }
    T* const to = a.out + r * 2 * a.width + i;
    store(to, dgate);
    store(to + a.width, dup);
    store(w.weighted + r * a.width + i, weighted);
  }
  const double sum = team_reduce(static_cast<double>(dot), scratch, Sum());
  if (r < rows && threadIdx.x == 0) w.dweights[slot] = static_cast<A>(sum);
}

}  // namespace

Rows swiglu(const Rows& gate_up) {
  const int64_t width = gate_up.data.dim(1) / 2;
  const Rows y = rows_like(gate_up, {0, width}, gate_up.data.dtype());
  if (y.data.numel() == 0) return y;
  visit_stored(y.data.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(width, {&gate_up.data, &y.data}, [&](auto n) {
      Stream& stream = current_stream();
      const Arguments<T> arguments = {.gate_up = gate_up.data.device_data<T>(),
                                      .dy = nullptr,
                                      .out = y.data.device_data<T>(),
                                      .live = gate_up.live.device_data<int64_t>(),
                                      .capacity = gate_up.capacity(),
                                      .width = width,
                                      .fault = stream.fault()};
      forward<T, n><<<row_grid(gate_up.capacity(), width / n), kThreads, 0, stream.native()>>>(arguments);
      check_launch("swiglu");
    });
  });
  return y;
}

Rows swiglu_backward(const Rows& dy, const Rows& gate_up) {
  PHX_CHECK(dy.capacity() >= gate_up.capacity() && 2 * dy.data.dim(1) == gate_up.data.dim(1),
            "swiglu_backward of {} and {}", dy.data.shape(), gate_up.data.shape());
  const int64_t width = dy.data.dim(1);
  const Rows dx = rows_like(gate_up, gate_up.data.shape(), gate_up.data.dtype());
  if (dx.data.numel() == 0) return dx;
  visit_stored(dx.data.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(width, {&gate_up.data, &dy.data, &dx.data}, [&](auto n) {
      Stream& stream = current_stream();
      const Arguments<T> arguments = {.gate_up = gate_up.data.device_data<T>(),
                                      .dy = dy.data.device_data<T>(),
                                      .out = dx.data.device_data<T>(),
                                      .live = gate_up.live.device_data<int64_t>(),
                                      .capacity = gate_up.capacity(),
                                      .width = width,
                                      .fault = stream.fault()};
      backward<T, n><<<row_grid(gate_up.capacity(), width / n), kThreads, 0, stream.native()>>>(arguments);
      check_launch("swiglu_backward");
    });
  });
  return dx;
}

WeightedSwigluGradients weighted_swiglu_backward(const Rows& dy, const Rows& gate_up,
                                                 const ExpertOrder& order, const Tensor& weights) {
  const int64_t width = dy.data.dim(1);
  const DType dtype = gate_up.data.dtype();
  const WeightedSwigluGradients out = {
      rows_like(gate_up, gate_up.data.shape(), dtype),
      Tensor::zeros(weights.shape(), weights.dtype(), weights.device()),
      rows_like(gate_up, dy.data.shape(), dtype),
  };
  if (gate_up.data.numel() == 0) return out;
  visit_stored(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(width, {&gate_up.data, &dy.data, &out.gate_up.data, &out.weighted_CF.data}, [&](auto n) {
      Stream& stream = current_stream();
      const WeightedArguments<T> arguments = {.rows = {.gate_up = gate_up.data.device_data<T>(),
                                                       .dy = dy.data.device_data<T>(),
                                                       .out = out.gate_up.data.device_data<T>(),
                                                       .live = gate_up.live.device_data<int64_t>(),
                                                       .capacity = gate_up.capacity(),
                                                       .width = width,
                                                       .fault = stream.fault()},
                                              .slots = order.slots.device_data<int64_t>(),
                                              .weights = weights.device_data<Arithmetic<T>>(),
                                              .dweights = out.weights_RK.device_data<Arithmetic<T>>(),
                                              .weighted = out.weighted_CF.data.device_data<T>()};
      const dim3 threads = row_threads(width / n);
      weighted_backward<T, n>
          <<<blocks_for(gate_up.capacity(), threads.y), threads, 0, stream.native()>>>(arguments);
      check_launch("weighted_swiglu_backward");
    });
  });
  return out;
}

}  // namespace phalanx::cuda
