#include "phalanx/ops/column_sums.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

constexpr int64_t kMostParts = 512;         // blocks that sum dw over rows of their own
constexpr size_t kSharedBytes = 48 * 1024;  // what a block has without asking

// One team a row. Squares are added in f64, so that they fit whatever the magnitude.
template <class T, int N>
__global__ void forward(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ y,
                        Arithmetic<T>* __restrict__ inv_rms, int64_t rows, int64_t width, double eps) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool mine = r < rows;
  const int64_t end = mine ? width : 0;
  const T* const in = x + r * width;
  double squares = 0;
#pragma unroll kInFlight
  for (int64_t i = int64_t{threadIdx.x} * N; i < end; i += int64_t{blockDim.x} * N) {
    const auto xi = load<T, N>(in + i);
    for (int k = 0; k < N; ++k) {
      const auto v = static_cast<double>(widen(xi.v[k]));
      squares = fma(v, v, squares);
    }
  }
  squares = team_reduce(squares, scratch, Sum{});
  const auto inv = static_cast<A>(1 / sqrt(squares / static_cast<double>(width) + eps));
  if (mine && threadIdx.x == 0) inv_rms[r] = inv;
#pragma unroll kInFlight
  for (int64_t i = int64_t{threadIdx.x} * N; i < end; i += int64_t{blockDim.x} * N) {
    const auto xi = load<T, N>(in + i);
    const auto wi = load<T, N>(w + i);
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) out.v[k] = narrow<T>(widen(xi.v[k]) * inv * widen(wi.v[k]));
    store(y + r * width + i, out);
  }
}

template <class T>
struct BackwardArguments {
  const T* dy;
  const T* x;
  const T* w;
  const Arithmetic<T>* inv_rms;
  T* dx;
  Arithmetic<T>* parts;  // [parts, width]: what each team adds to dw
  int64_t rows;
  int64_t width;
  int64_t rows_a_part;
};

// With n = x·inv the normed row: dx = inv · (dy·w − n · mean(dy·w·n)), dw = Σ dy·n. Each team takes
// rows_a_part rows one after another and sums dw in columns that each belong to one thread: in shared memory,
// if they fit.
template <class T, int N>
__global__ void backward(BackwardArguments<T> a, bool sums_are_shared) {
  using A = Arithmetic<T>;
  extern __shared__ __align__(64) unsigned char shared[];
  __shared__ TeamScratch scratch;
  const int64_t part = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t first = int64_t{threadIdx.x} * N;
  const int64_t step = int64_t{blockDim.x} * N;
  const T* const __restrict__ w = a.w;
  A* const kept = a.parts + part * a.width;
  A* const sums = sums_are_shared ? reinterpret_cast<A*>(shared) + threadIdx.y * a.width : kept;
  for (int64_t i = first; i < a.width; i += step) store(sums + i, Pack<A, N>{});
  for (int64_t r = part * a.rows_a_part; r < (part + 1) * a.rows_a_part; ++r) {
    const int64_t end = r < a.rows ? a.width : 0;
    const T* const __restrict__ in = a.x + r * a.width;
    const T* const __restrict__ g = a.dy + r * a.width;
    T* const __restrict__ to = a.dx + r * a.width;
    const A inv = end > 0 ? a.inv_rms[r] : A(0);
    double dot = 0;
#pragma unroll kInFlight
    for (int64_t i = first; i < end; i += step) {
      const auto xi = load<T, N>(in + i);
      const auto gi = load<T, N>(g + i);
      const auto wi = load<T, N>(w + i);
      for (int k = 0; k < N; ++k) {
        dot += static_cast<double>(widen(gi.v[k]) * widen(wi.v[k]) * (widen(xi.v[k]) * inv));
      }
    }
    const auto mean = static_cast<A>(team_reduce(dot, scratch, Sum{}) / static_cast<double>(a.width));
#pragma unroll kInFlight
    for (int64_t i = first; i < end; i += step) {
      const auto xi = load<T, N>(in + i);
      const auto gi = load<T, N>(g + i);
      const auto wi = load<T, N>(w + i);
      auto sum = load<A, N>(sums + i);
      Pack<T, N> out;
      for (int k = 0; k < N; ++k) {
        const A g_k = widen(gi.v[k]);
        const A normed = widen(xi.v[k]) * inv;
        sum.v[k] += g_k * normed;
        out.v[k] = narrow<T>(inv * (g_k * widen(wi.v[k]) - normed * mean));
      }
      store(sums + i, sum);
      store(to + i, out);
    }
  }
  if (!sums_are_shared) return;
  for (int64_t i = first; i < a.width; i += step) store(kept + i, load<A, N>(sums + i));
}

}  // namespace

RmsNormed rmsnorm(const Tensor& x, const Tensor& w, double eps) {
  const int64_t width = x.dim(1);
  return visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const RmsNormed out = {Tensor::empty(x.shape(), x.dtype(), x.device()),
                           Tensor::empty({x.rows()}, dtype_of<A>, x.device())};
    if (x.rows() == 0) return out;
    with_pack<T>(width, {&x, &w, &out.y_TD}, [&](auto n) {
      const dim3 threads = row_threads((width + n - 1) / n);
      forward<T, n><<<blocks_for(x.rows(), threads.y), threads, 0, current_stream().native()>>>(
          x.device_data<T>(), w.device_data<T>(), out.y_TD.device_data<T>(), out.inv_rms_T.device_data<A>(),
          x.rows(), width, eps);
      check_launch("rmsnorm");
    });
    return out;
  });
}

Tensor rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                        const Tensor& dw) {
  const Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  const int64_t width = x.dim(1);
  if (x.numel() == 0) return dx;
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    with_pack<T>(width, {&x, &w, &dy, &dx}, [&](auto n) {
      const dim3 threads = row_threads((width + n - 1) / n);
      const int64_t rows_a_part = (x.rows() + kMostParts * threads.y - 1) / (kMostParts * threads.y);
      const unsigned blocks = blocks_for(x.rows(), rows_a_part * threads.y);
      const int64_t count = int64_t{blocks} * threads.y;
      const Tensor parts = Tensor::empty({count, width}, dtype_of<A>, x.device());
      const size_t shared = threads.y * static_cast<size_t>(width) * sizeof(A);
      const bool fits = shared + sizeof(TeamScratch) <= kSharedBytes;
      CUstream_st* const stream = current_stream().native();
      const BackwardArguments<T> arguments = {.dy = dy.device_data<T>(),
                                              .x = x.device_data<T>(),
                                              .w = w.device_data<T>(),
                                              .inv_rms = inv_rms.device_data<A>(),
                                              .dx = dx.device_data<T>(),
                                              .parts = parts.device_data<A>(),
                                              .rows = x.rows(),
                                              .width = width,
                                              .rows_a_part = rows_a_part};
      backward<T, n><<<blocks, threads, fits ? shared : 0, stream>>>(arguments, fits);
      check_launch("rmsnorm_backward");
      add_parts<T>(dw, parts);
    });
  });
  return dx;
}

}  // namespace phalanx::cuda
