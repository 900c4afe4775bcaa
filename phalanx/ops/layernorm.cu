#include "phalanx/ops/column_sums.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

constexpr int64_t kMostParts = 512;  // teams that sum dw and db over rows of their own

template <class T>
struct ForwardArguments {
  const T* x;
  const T* w;
  const T* b;  // or null
  T* y;
  Arithmetic<T>* mean;
  Arithmetic<T>* inv_std;
  int64_t rows;
  int64_t width;
  double eps;
};

// One team a row; the deviations are taken in a second pass, so that a large mean costs no digits.
template <class T, int N>
__global__ void forward(ForwardArguments<T> a) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool mine = r < a.rows;
  const int64_t end = mine ? a.width : 0;
  const int64_t first = int64_t{threadIdx.x} * N;
  const int64_t step = int64_t{blockDim.x} * N;
  const T* const in = a.x + r * a.width;
  double sum = 0;
#pragma unroll kInFlight
  for (int64_t i = first; i < end; i += step) {
    const auto x = load<T, N>(in + i);
    for (int k = 0; k < N; ++k) sum += static_cast<double>(widen(x.v[k]));
  }
  const double exact_mean = team_reduce(sum, scratch, Sum{}) / static_cast<double>(a.width);
  double squares = 0;
#pragma unroll kInFlight
  for (int64_t i = first; i < end; i += step) {
    const auto x = load<T, N>(in + i);
    for (int k = 0; k < N; ++k) {
      const double v = static_cast<double>(widen(x.v[k])) - exact_mean;
      squares = fma(v, v, squares);
    }
  }
  const double variance = team_reduce(squares, scratch, Sum{}) / static_cast<double>(a.width);
  const auto mean = static_cast<A>(exact_mean);
  const auto inv = static_cast<A>(1 / sqrt(variance + a.eps));
  if (mine && threadIdx.x == 0) {
    a.mean[r] = mean;
    a.inv_std[r] = inv;
  }
#pragma unroll kInFlight
  for (int64_t i = first; i < end; i += step) {
    const auto x = load<T, N>(in + i);
    const auto w = load<T, N>(a.w + i);
    const auto b = a.b ? load<T, N>(a.b + i) : Pack<T, N>{};
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) {
      out.v[k] = narrow<T>(fma((widen(x.v[k]) - mean) * inv, widen(w.v[k]), widen(b.v[k])));
    }
    store(a.y + r * a.width + i, out);
  }
}

template <class T>
struct BackwardArguments {
  const T* dy;
  const T* x;
  const T* w;
  const Arithmetic<T>* mean;
  const Arithmetic<T>* inv_std;
  T* dx;
  Arithmetic<T>* parts;  // [parts, 2·width]: what each team adds to dw and db
  int64_t rows;
  int64_t width;
  int64_t rows_a_part;
};

// With n the normed row: dx = inv_std · (dy·w − mean(dy·w) − n · mean(dy·w·n)), dw = Σ dy·n, db = Σ dy. Each
// team takes rows_a_part rows one after another; each column of its sums belongs to one thread.
template <class T, int N>
__global__ void backward(BackwardArguments<T> a) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const int64_t part = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t first = int64_t{threadIdx.x} * N;
  const int64_t step = int64_t{blockDim.x} * N;
  A* const dw = a.parts + part * 2 * a.width;
  A* const db = dw + a.width;
  for (int64_t i = first; i < a.width; i += step) {
    for (int k = 0; k < N; ++k) dw[i + k] = db[i + k] = A(0);
  }
  for (int64_t r = part * a.rows_a_part; r < (part + 1) * a.rows_a_part; ++r) {
    const int64_t end = r < a.rows ? a.width : 0;
    const T* const __restrict__ in = a.x + r * a.width;
    const T* const __restrict__ g = a.dy + r * a.width;
    const A mean = end > 0 ? a.mean[r] : A(0);
    const A inv = end > 0 ? a.inv_std[r] : A(0);
    double sum_gw = 0;
    double sum_gwn = 0;
#pragma unroll kInFlight
    for (int64_t i = first; i < end; i += step) {
      const auto x = load<T, N>(in + i);
      const auto dy = load<T, N>(g + i);
      const auto w = load<T, N>(a.w + i);
      for (int k = 0; k < N; ++k) {
        const A gw = widen(dy.v[k]) * widen(w.v[k]);
        sum_gw += static_cast<double>(gw);
        sum_gwn += static_cast<double>(gw * ((widen(x.v[k]) - mean) * inv));
      }
    }
    const auto mean_gw = static_cast<A>(team_reduce(sum_gw, scratch, Sum{}) / static_cast<double>(a.width));
    const auto mean_gwn = static_cast<A>(team_reduce(sum_gwn, scratch, Sum{}) / static_cast<double>(a.width));
#pragma unroll kInFlight
    for (int64_t i = first; i < end; i += step) {
      const auto x = load<T, N>(in + i);
      const auto dy = load<T, N>(g + i);
      const auto w = load<T, N>(a.w + i);
      Pack<T, N> out;
      for (int k = 0; k < N; ++k) {
        const A gi = widen(dy.v[k]);
        const A normed = (widen(x.v[k]) - mean) * inv;
        dw[i + k] = fma(gi, normed, dw[i + k]);
        db[i + k] += gi;
        out.v[k] = narrow<T>(inv * (gi * widen(w.v[k]) - mean_gw - normed * mean_gwn));
      }
      store(a.dx + r * a.width + i, out);
    }
  }
}

template <class T>
LayerNormed new_results(const Tensor& x) {
  const DType kept = dtype_of<Arithmetic<T>>;
  return {Tensor::empty(x.shape(), x.dtype(), x.device()), Tensor::empty({x.rows()}, kept, x.device()),
          Tensor::empty({x.rows()}, kept, x.device())};
}

}  // namespace

LayerNormed layernorm(const Tensor& x, const Tensor& w, const Tensor& b, double eps) {
  return visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const LayerNormed out = new_results<T>(x);
    if (x.rows() == 0) return out;
    const int64_t width = x.dim(1);
    const Tensor& shift = b.defined() ? b : w;  // only its alignment counts where there is none
    with_pack<T>(width, {&x, &w, &shift, &out.y_TD}, [&](auto n) {
      const dim3 threads = row_threads((width + n - 1) / n);
      const ForwardArguments<T> arguments = {.x = x.device_data<T>(),
                                             .w = w.device_data<T>(),
                                             .b = b.defined() ? b.device_data<T>() : nullptr,
                                             .y = out.y_TD.device_data<T>(),
                                             .mean = out.mean_T.device_data<A>(),
                                             .inv_std = out.inv_std_T.device_data<A>(),
                                             .rows = x.rows(),
                                             .width = width,
                                             .eps = eps};
      const unsigned blocks = blocks_for(x.rows(), threads.y);
      forward<T, n><<<blocks, threads, 0, current_stream().native()>>>(arguments);
      check_launch("layernorm");
    });
    return out;
  });
}

Tensor layernorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const LayerNormed& kept,
                          const Tensor& dw, const Tensor& db) {
  const Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.numel() == 0) return dx;
  const int64_t width = x.dim(1);
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    with_pack<T>(width, {&x, &w, &dy, &dx}, [&](auto n) {
      const dim3 threads = row_threads((width + n - 1) / n);
      const int64_t rows_a_part = (x.rows() + kMostParts * threads.y - 1) / (kMostParts * threads.y);
      const unsigned blocks = blocks_for(x.rows(), rows_a_part * threads.y);
      const Tensor parts = Tensor::empty({int64_t{blocks} * threads.y, 2 * width}, dtype_of<A>, x.device());
      const BackwardArguments<T> arguments = {.dy = dy.device_data<T>(),
                                              .x = x.device_data<T>(),
                                              .w = w.device_data<T>(),
                                              .mean = kept.mean_T.device_data<A>(),
                                              .inv_std = kept.inv_std_T.device_data<A>(),
                                              .dx = dx.device_data<T>(),
                                              .parts = parts.device_data<A>(),
                                              .rows = x.rows(),
                                              .width = width,
                                              .rows_a_part = rows_a_part};
      backward<T, n><<<blocks, threads, 0, current_stream().native()>>>(arguments);
      check_launch("layernorm_backward");
      add_parts<T>(dw, parts);
      if (db.defined()) add_parts<T>(db, parts, width);
    });
  });
  return dx;
}

}  // namespace phalanx::cuda
