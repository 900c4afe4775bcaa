#include "phalanx/ops/at_rest.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/dependents.cuh"
#include "phalanx/ops/norm_rows.cuh"

namespace phalanx::cuda {
namespace {

// One team a row. Squares are added in f64, so that they fit whatever the magnitude. (x and w are not said to
// be restricted: their loads would be free to move in front of the wait.) Short rows have their w loaded with
// x, or before it, if it is at rest.
template <class T, int N, int P>
__global__ void __launch_bounds__(kMostThreads)
    forward(const T* x, const T* w, T* __restrict__ y, Arithmetic<T>* __restrict__ inv_rms, int64_t rows,
            int64_t width, double eps, bool at_rest) {
  using A = Arithmetic<T>;
  constexpr bool kShort = P == 1;
  __shared__ TeamScratch scratch;
  let_next_start();
  if (!at_rest) wait_for_kernel();
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const RowPacks<N, P> row = {r < rows ? width : 0};
  Pack<T, N> weights[P];
  if (kShort) row.load_row(w, weights);
  wait_for_kernel();
  Pack<T, N> in[P];
  row.load_row(x + r * width, in);
  double squares = 0;
  row.each_element([&](int p, int k) {
    const auto v = static_cast<double>(widen(in[p].v[k]));
    squares = fma(v, v, squares);
  });
  squares = team_reduce(squares, scratch, Sum{});
  const auto inv = static_cast<A>(1 / sqrt(squares / static_cast<double>(width) + eps));
  if (r < rows && threadIdx.x == 0) inv_rms[r] = inv;
  row.each([&](int p, int64_t i) {
    const auto wi = kShort ? weights[p] : load<T, N>(w + i);
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) out.v[k] = narrow<T>(widen(in[p].v[k]) * inv * widen(wi.v[k]));
    store(y + r * width + i, out);
  });
}

template <class T>
struct BackwardArguments {
  const T* dy;
  const T* x;
  const T* w;
  const T* also;  // or null
  const Arithmetic<T>* inv_rms;
  T* dx;
  Arithmetic<T>* parts;  // [parts, width]: what each block adds to dw
  int64_t rows;
  int64_t width;
  int64_t rows_a_team;
};

// With n = x·inv the normed row: dx = inv · (dy·w − n · mean(dy·w·n)), dw = Σ dy·n. Each team takes
// rows_a_team rows one after another; the columns of its sums belong to one thread each.
template <class T, int N, int P>
__global__ void __launch_bounds__(kMostThreads) backward(BackwardArguments<T> a) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const int64_t team = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const RowPacks<N, P> columns = {a.width};
  Pack<A, N> sum[P] = {};
  for (int64_t r = team * a.rows_a_team; r < (team + 1) * a.rows_a_team; ++r) {
    const RowPacks<N, P> row = {r < a.rows ? a.width : 0};
    Pack<T, N> x[P];
    Pack<T, N> dy[P];
    row.load_row(a.x + r * a.width, x);
    row.load_row(a.dy + r * a.width, dy);
    Pack<T, N> also[P] = {};
    if (a.also) row.load_row(a.also + r * a.width, also);
    const A inv = r < a.rows ? a.inv_rms[r] : A(0);
    double dot = 0;
    row.each([&](int p, int64_t i) {
      const auto w = load<T, N>(a.w + i);
      A sum_of_pack = 0;
      for (int k = 0; k < N; ++k) {
        sum_of_pack = fma(widen(dy[p].v[k]) * widen(w.v[k]), widen(x[p].v[k]) * inv, sum_of_pack);
      }
      dot += static_cast<double>(sum_of_pack);
    });
    const auto mean = static_cast<A>(team_reduce(dot, scratch, Sum{}) / static_cast<double>(a.width));
    row.each([&](int p, int64_t i) {
      const auto w = load<T, N>(a.w + i);
      Pack<T, N> out;
      for (int k = 0; k < N; ++k) {
        const A g = widen(dy[p].v[k]);
        const A normed = widen(x[p].v[k]) * inv;
        sum[p].v[k] += g * normed;
        out.v[k] = narrow<T>(fma(inv, g * widen(w.v[k]) - normed * mean, widen(also[p].v[k])));
      }
      store(a.dx + r * a.width + i, out);
    });
  }
  extern __shared__ uint4 memory[];
  store_part(columns, sum, reinterpret_cast<A*>(memory), a.parts + int64_t{blockIdx.x} * a.width);
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
      with_row_packs(width, n, [&](dim3 threads, auto p) {
        const Grid grid = {.blocks = dim3(blocks_for(x.rows(), threads.y)), .threads = threads};
        launch_early("rmsnorm", forward<T, n, p>, grid, x.device_data<T>(), w.device_data<T>(),
                     out.y_TD.device_data<T>(), out.inv_rms_T.device_data<A>(), x.rows(), width, eps,
                     AtRest::on());
      });
    });
    return out;
  });
}

Tensor rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                        const Tensor& dw, const Tensor& also) {
  const Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  const int64_t width = x.dim(1);
  if (x.numel() == 0) return dx;
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    with_pack<T>(width, {&x, &w, &dy, also.defined() ? &also : &dx, &dx}, [&](auto n) {
      with_row_packs(width, n, [&](dim3 threads, auto p) {
        const NormParts of_rows(x.rows(), threads);
        const Tensor parts = Tensor::empty({int64_t{of_rows.blocks}, width}, dtype_of<A>, x.device());
        const BackwardArguments<T> arguments = {.dy = dy.device_data<T>(),
                                                .x = x.device_data<T>(),
                                                .w = w.device_data<T>(),
                                                .also = also.defined() ? also.device_data<T>() : nullptr,
                                                .inv_rms = inv_rms.device_data<A>(),
                                                .dx = dx.device_data<T>(),
                                                .parts = parts.device_data<A>(),
                                                .rows = x.rows(),
                                                .width = width,
                                                .rows_a_team = of_rows.rows_a_team};
        const size_t shared = part_bytes<A>(threads, width, 1);
        backward<T, n, p><<<of_rows.blocks, threads, shared, current_stream().native()>>>(arguments);
        check_launch("rmsnorm_backward");
        add_parts<T>(dw, parts);
      });
    });
  });
  return dx;
}

}  // namespace phalanx::cuda
