// A block has a row: its angles are computed once for all heads, q is turned where it is, k on its way to its
// page, and v goes along.
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/decode_keys.cuh"
#include "phalanx/ops/dependents.cuh"
#include "phalanx/ops/rope.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Arguments {
  PageKeys<T> to;
  T* q;
  const T* k;
  const T* v;
  int64_t query_width;  // elements of a row of q
  int head_dim;
};

template <class T>
__global__ void __launch_bounds__(kThreads) turn_and_append_rows(Arguments<T> a, Turns turns) {
  using A = Arithmetic<T>;
  __shared__ A cosines[kMostPairs];
  __shared__ A sines[kMostPairs];
  let_next_start();
  wait_for_kernel();
  const int64_t row = blockIdx.x;
  const int32_t position = a.to.positions[row];
  for (int i = threadIdx.x; i < turns.pairs; i += kThreads) {
    turns.angle(position, i, cosines[i], sines[i]);
  }
  __syncthreads();
  const int64_t page = a.to.page_begin(row, position < 0 ? -1 : position / a.to.page_rows);
  const int64_t at = page + position % a.to.page_rows;  // if there is a page
  T* const q = a.q + row * a.query_width;
  const T* const k = a.k + row * a.to.key_width;
  T* const k_there = page < 0 ? nullptr : a.to.k + at * a.to.key_width;
  const int still = a.head_dim - 2 * turns.pairs;  // columns of a head, the first ones
  const int query_heads = static_cast<int>(a.query_width / a.head_dim);
  const int heads = query_heads + static_cast<int>(a.to.key_width / a.head_dim);
  for (int j = threadIdx.x; j < heads * turns.pairs; j += kThreads) {
    const int head = j / turns.pairs;
    const int i = j % turns.pairs;
    const bool is_query = head < query_heads;
    const int column = (is_query ? head : head - query_heads) * a.head_dim + still + i;
    const T* const from = (is_query ? q : k) + column;
    T* const to = is_query ? q : k_there;
    if (!to) continue;
    const A x = widen(from[0]);
    const A y = widen(from[turns.pairs]);
    to[column] = narrow<T>(fma(-y, sines[i], x * cosines[i]));
    to[column + turns.pairs] = narrow<T>(fma(x, sines[i], y * cosines[i]));
  }
  if (!k_there) return;
  for (int64_t i = threadIdx.x; i < a.to.key_width; i += kThreads) {
    if (i % a.head_dim < still) k_there[i] = k[i];
  }
  for (int64_t i = threadIdx.x; i < a.to.value_width; i += kThreads) {
    a.to.v[at * a.to.value_width + i] = a.v[row * a.to.value_width + i];
  }
}

}  // namespace

void turn_and_append(const KvPages& pages, const KvPlaces& places, const AttentionRows& rows,
                     int64_t head_dim) {
  const Tensor& q = rows.q_THd;
  if (q.rows() == 0) return;
  const Turns turns(*rows.rotation, 1);
  PHX_CHECK(2 * turns.pairs <= head_dim && q.rows() == rows.k_TGd.rows() && q.dim(1) % head_dim == 0 &&
                rows.k_TGd.dim(1) % head_dim == 0,
            "{} pairs turn of heads of {} in q {} and k {}", turns.pairs, head_dim, q.shape(),
            rows.k_TGd.shape());
  visit_stored(q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const Arguments<T> a = {.to = PageKeys<T>(pages, places),
                            .q = q.device_data<T>(),
                            .k = rows.k_TGd.device_data<T>(),
                            .v = rows.v_TGd.device_data<T>(),
                            .query_width = q.dim(1),
                            .head_dim = static_cast<int>(head_dim)};
    const Grid grid = {.blocks = dim3(static_cast<unsigned>(q.rows())), .threads = dim3(kThreads)};
    launch_early("turn_and_append", turn_and_append_rows<T>, grid, a, turns);
  });
}

}  // namespace phalanx::cuda
