#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/norm_rows.cuh"

namespace phalanx::cuda {
namespace {

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

// One team a row; deviations are taken from the mean, so that a large one costs no digits.
template <class T, int N, int P>
__global__ void __launch_bounds__(kMostThreads) forward(ForwardArguments<T> a) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const RowPacks<N, P> row = {r < a.rows ? a.width : 0};
  Pack<T, N> x[P];
  row.load_row(a.x + r * a.width, x);
  double sum = 0;
  row.each_element([&](int p, int k) { sum += static_cast<double>(widen(x[p].v[k])); });
  const double exact_mean = team_reduce(sum, scratch, Sum{}) / static_cast<double>(a.width);
  double squares = 0;
  row.each_element([&](int p, int k) {
    const double v = static_cast<double>(widen(x[p].v[k])) - exact_mean;
    squares = fma(v, v, squares);
  });
  const double variance = team_reduce(squares, scratch, Sum{}) / static_cast<double>(a.width);
  const auto mean = static_cast<A>(exact_mean);
  const auto inv = static_cast<A>(1 / sqrt(variance + a.eps));
  if (r < a.rows && threadIdx.x == 0) {
    a.mean[r] = mean;
    a.inv_std[r] = inv;
  }
  row.each([&](int p, int64_t i) {
    const auto w = load<T, N>(a.w + i);
    const auto b = a.b ? load<T, N>(a.b + i) : Pack<T, N>{};
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) {
      out.v[k] = narrow<T>(fma((widen(x[p].v[k]) - mean) * inv, widen(w.v[k]), widen(b.v[k])));
    }
    store(a.y + r * a.width + i, out);
  });
}

template <class T>
struct BackwardArguments {
  const T* dy;
  const T* x;
  const T* w;
  const T* also;  // or null
  const Arithmetic<T>* mean;
  const Arithmetic<T>* inv_std;
  T* dx;
  Arithmetic<T>* parts;  // [parts, 2·width]: what each block adds to dw and db
  int64_t rows;
  int64_t width;
  int64_t rows_a_team;
};

// With n the normed row: dx = inv_std · (dy·w − mean(dy·w) − n · mean(dy·w·n)), dw = Σ dy·n, db = Σ dy. Each
// team takes rows_a_team rows one after another; the columns of its sums belong to one thread each.
template <class T, int N, int P>
__global__ void __launch_bounds__(kMostThreads) backward(BackwardArguments<T> a) {
  using A = Arithmetic<T>;
  __shared__ TeamScratchOf<Two> scratch;
  const int64_t team = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const RowPacks<N, P> columns = {a.width};
  Pack<A, N> dw[P] = {};
  Pack<A, N> db[P] = {};
  for (int64_t r = team * a.rows_a_team; r < (team + 1) * a.rows_a_team; ++r) {
    const RowPacks<N, P> row = {r < a.rows ? a.width : 0};
    Pack<T, N> x[P];
    Pack<T, N> dy[P];
    row.load_row(a.x + r * a.width, x);
    row.load_row(a.dy + r * a.width, dy);
    Pack<T, N> also[P] = {};
    if (a.also) row.load_row(a.also + r * a.width, also);
    const A mean = r < a.rows ? a.mean[r] : A(0);
    const A inv = r < a.rows ? a.inv_std[r] : A(0);
    Two sums = {0, 0};  // of dy·w, and of that times n
    row.each([&](int p, int64_t i) {
      const auto w = load<T, N>(a.w + i);
      A pack_gw = 0;
      A pack_gwn = 0;
      for (int k = 0; k < N; ++k) {
        const A gw = widen(dy[p].v[k]) * widen(w.v[k]);
        pack_gw += gw;
        pack_gwn = fma(gw, (widen(x[p].v[k]) - mean) * inv, pack_gwn);
      }
      sums.a += static_cast<double>(pack_gw);
      sums.b += static_cast<double>(pack_gwn);
    });
    sums = team_reduce(sums, scratch, Sum{});
    const auto mean_gw = static_cast<A>(sums.a / static_cast<double>(a.width));
    const auto mean_gwn = static_cast<A>(sums.b / static_cast<double>(a.width));
    row.each([&](int p, int64_t i) {
      const auto w = load<T, N>(a.w + i);
      Pack<T, N> out;
      for (int k = 0; k < N; ++k) {
        const A g = widen(dy[p].v[k]);
        const A normed = (widen(x[p].v[k]) - mean) * inv;
        dw[p].v[k] = fma(g, normed, dw[p].v[k]);
        db[p].v[k] += g;
        out.v[k] = narrow<T>(fma(inv, g * widen(w.v[k]) - mean_gw - normed * mean_gwn, widen(also[p].v[k])));
      }
      store(a.dx + r * a.width + i, out);
    });
  }
  extern __shared__ uint4 memory[];
  A* const shared = reinterpret_cast<A*>(memory);
  A* const to = a.parts + int64_t{blockIdx.x} * 2 * a.width;
  store_part(columns, dw, shared, to);
  store_part(columns, db, shared + a.width, to + a.width);
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
      const ForwardArguments<T> arguments = {.x = x.device_data<T>(),
                                             .w = w.device_data<T>(),
                                             .b = b.defined() ? b.device_data<T>() : nullptr,
                                             .y = out.y_TD.device_data<T>(),
                                             .mean = out.mean_T.device_data<A>(),
                                             .inv_std = out.inv_std_T.device_data<A>(),
                                             .rows = x.rows(),
                                             .width = width,
                                             .eps = eps};
      with_row_packs(width, n, [&](dim3 threads, auto p) {
        const unsigned blocks = blocks_for(x.rows(), threads.y);
        forward<T, n, p><<<blocks, threads, 0, current_stream().native()>>>(arguments);
      });
    });
    check_launch("layernorm");
    return out;
  });
}

Tensor layernorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const LayerNormed& kept,
                          const LayerNormSums& sums) {
  const Tensor& also = sums.also_TD;
  const Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.numel() == 0) return dx;
  const int64_t width = x.dim(1);
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    with_pack<T>(width, {&x, &w, &dy, also.defined() ? &also : &dx, &dx}, [&](auto n) {
      with_row_packs(width, n, [&](dim3 threads, auto p) {
        const NormParts of_rows(x.rows(), threads);
        const Tensor parts = Tensor::empty({int64_t{of_rows.blocks}, 2 * width}, dtype_of<A>, x.device());
        const BackwardArguments<T> arguments = {.dy = dy.device_data<T>(),
                                                .x = x.device_data<T>(),
                                                .w = w.device_data<T>(),
                                                .also = also.defined() ? also.device_data<T>() : nullptr,
                                                .mean = kept.mean_T.device_data<A>(),
                                                .inv_std = kept.inv_std_T.device_data<A>(),
                                                .dx = dx.device_data<T>(),
                                                .parts = parts.device_data<A>(),
                                                .rows = x.rows(),
                                                .width = width,
                                                .rows_a_team = of_rows.rows_a_team};
        const size_t shared = part_bytes<A>(threads, width, 2);
        backward<T, n, p><<<of_rows.blocks, threads, shared, current_stream().native()>>>(arguments);
        check_launch("layernorm_backward");
        add_parts<T>(sums.dw_D, parts);
        if (sums.db_D.defined()) add_parts<T>(sums.db_D, parts, width);
      });
    });
  });
  return dx;
}

}  // namespace phalanx::cuda
