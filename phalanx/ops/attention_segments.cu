// Decoding over any heads, in segments or pages: a block has one query row of one head, its warps share the
// keys, 32 at a time and one a lane, and their sums are put together in the warps' order.
#include <limits>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/base/pooled.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/decode_attention_cuda.h"
#include "phalanx/ops/decode_keys.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

template <class T>
struct Arguments {
  const T* q;
  const int32_t* positions;
  T* y;
  int64_t head_dim;
  int64_t value_dim;
  int heads;
  int kv_heads;
  Arithmetic<T> scale;
};

// A warp's softmax so far, alike on all its lanes; its sums of v lie in shared memory.
template <class A>
struct Softmax {
  A max;  // of the scores so far
  A sum;  // of e^(score − max)
};

template <class A>
__device__ A none() {
  return -std::numeric_limits<A>::infinity();
}

// Adds rows begin … begin + 31 of a run, as far as it goes. q is scaled; y [value_dim] is the warp's.
template <class T>
__device__ void add_keys(const Arguments<T>& a, const KvRun<T>& run, int64_t begin, const Arithmetic<T>* q,
                         Arithmetic<T>* y, Softmax<Arithmetic<T>>& softmax) {
  using A = Arithmetic<T>;
  const int lane = threadIdx.x % kWarp;
  const int64_t kv_head = blockIdx.y / (a.heads / a.kv_heads);
  const bool sees = begin + lane < run.rows;
  A score = none<A>();
  if (sees) {
    const T* const k = run.k + ((begin + lane) * a.kv_heads + kv_head) * a.head_dim;
    score = 0;
    for (int64_t i = 0; i < a.head_dim; ++i) score = fma(q[i], widen(k[i]), score);
  }
  A largest = score;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, step));
  }
  largest = fmax(largest, softmax.max);
  const A shrink = softmax.max == none<A>() ? A(0) : exp(softmax.max - largest);
  const A weight = sees ? exp(score - largest) : A(0);
  A all = weight;
  for (int step = kWarp / 2; step > 0; step /= 2) all += __shfl_xor_sync(~0u, all, step);
  softmax = {largest, fma(softmax.sum, shrink, all)};
  const int here = static_cast<int>(min(int64_t{kWarp}, run.rows - begin));
  for (int64_t first = 0; first < a.value_dim; first += kWarp) {
    const int64_t c = first + lane;
    const bool mine = c < a.value_dim;
    const T* const v = run.v + (begin * a.kv_heads + kv_head) * a.value_dim + c;
    A sum = mine ? shrink * y[c] : A(0);
    for (int j = 0; j < here; ++j) {
      const A w = __shfl_sync(~0u, weight, j);
      if (mine) sum = fma(w, widen(v[j * a.kv_heads * a.value_dim]), sum);
    }
    if (mine) y[c] = sum;
  }
}

// Block (row, head).
template <class T, class Keys>
__global__ void __launch_bounds__(kThreads) attend(Arguments<T> a, Keys keys) {
  using A = Arithmetic<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Softmax<A> of_warps[kWarps];
  A* const q = reinterpret_cast<A*>(shared);
  A* const sums = q + a.head_dim;  // [kWarps, value_dim]
  const int64_t row = blockIdx.x;
  const int64_t at = row * a.heads + blockIdx.y;
  const int warp = threadIdx.x / kWarp;
  for (int64_t i = threadIdx.x; i < a.head_dim; i += kThreads) {
    q[i] = widen(a.q[at * a.head_dim + i]) * a.scale;
  }
  for (int64_t i = threadIdx.x; i < kWarps * a.value_dim; i += kThreads) sums[i] = 0;
  __syncthreads();
  const int64_t position = a.positions[row];
  const int64_t runs = keys.runs(row, position);
  Softmax<A> softmax = {none<A>(), A(0)};
  int64_t chunk = 0;
  for (int64_t i = 0; i < runs; ++i) {
    const KvRun<T> run = keys.run(row, position, i);
    for (int64_t begin = 0; begin < run.rows; begin += kWarp, ++chunk) {
      if (chunk % kWarps == warp) add_keys(a, run, begin, q, sums + warp * a.value_dim, softmax);
    }
  }
  if (threadIdx.x % kWarp == 0) of_warps[warp] = softmax;
  __syncthreads();
  A largest = none<A>();
  for (int w = 0; w < kWarps; ++w) largest = fmax(largest, of_warps[w].max);
  for (int64_t c = threadIdx.x; c < a.value_dim; c += kThreads) {
    A sum = 0;
    A all = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (of_warps[w].max == none<A>()) continue;
      const A shrink = exp(of_warps[w].max - largest);
      all = fma(of_warps[w].sum, shrink, all);
      sum = fma(sums[w * a.value_dim + c], shrink, sum);
    }
    a.y[at * a.value_dim + c] = narrow<T>(all == A(0) ? A(0) : sum / all);
  }
}

template <class T, class Keys>
void launch(const Tensor& q, const Tensor& positions, const Tensor& y, const Keys& keys,
            const AttentionConfig& c) {
  using A = Arithmetic<T>;
  const Arguments<T> a = {.q = q.device_data<T>(),
                          .positions = positions.device_data<int32_t>(),
                          .y = y.device_data<T>(),
                          .head_dim = c.head_dim,
                          .value_dim = c.values(),
                          .heads = c.heads,
                          .kv_heads = c.kv_heads,
                          .scale = static_cast<A>(c.scale)};
  constexpr size_t kMostShared = 46 << 10;  // what a kernel may have unasked, less of_warps
  const size_t shared = static_cast<size_t>(c.head_dim + kWarps * c.values()) * sizeof(A);
  if (shared > kMostShared) {
    throw Error("decoding on a GPU: heads of {} and {} columns do not fit its shared memory", c.head_dim,
                c.values());
  }
  const dim3 grid(static_cast<unsigned>(q.rows()), static_cast<unsigned>(c.heads));
  attend<T, Keys><<<grid, kThreads, shared, current_stream().native()>>>(a, keys);
  check_launch("decode attention");
}

// A block a row.
template <class T, int N>
__global__ void append(PageKeys<T> to, const T* __restrict__ k, const T* __restrict__ v) {
  const int64_t row = blockIdx.x;
  const int64_t position = to.positions[row];
  const int64_t begin = to.page_begin(row, position < 0 ? -1 : position / to.page_rows);
  if (begin < 0) return;
  const int64_t at = begin + position % to.page_rows;
  for (int64_t i = int64_t{threadIdx.x} * N; i < to.key_width; i += int64_t{blockDim.x} * N) {
    store(to.k + at * to.key_width + i, load<T, N>(k + row * to.key_width + i));
  }
  for (int64_t i = int64_t{threadIdx.x} * N; i < to.value_width; i += int64_t{blockDim.x} * N) {
    store(to.v + at * to.value_width + i, load<T, N>(v + row * to.value_width + i));
  }
}

}  // namespace

Tensor attention_over_segments(const Tensor& q, const Tensor& positions, std::span<const KvSegment> segments,
                               const AttentionConfig& c) {
  const Tensor y = Tensor::empty({q.rows(), c.heads * c.values()}, q.dtype(), q.device());
  if (y.numel() == 0) return y;
  visit_stored(q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using Segment = typename SegmentKeys<T>::Segment;
    PooledVector<Segment> list;
    for (const KvSegment& s : segments) {
      list.push_back({s.k_SGd.device_data<T>(), s.v_SGd.device_data<T>(), s.k_SGd.rows(), s.first_position});
    }
    const Tensor host = Tensor::empty({std::ssize(list), int64_t{sizeof(Segment)}}, DType::u8);
    std::copy_n(reinterpret_cast<const std::byte*>(list.data()), host.bytes(), host.raw());
    const Tensor here = host.to(q.device());
    launch<T>(q, positions, y,
              SegmentKeys<T>{reinterpret_cast<const Segment*>(here.address()), std::ssize(list)}, c);
  });
  return y;
}

Tensor attention_over_pages(const Tensor& q, const KvPlaces& places, const KvPages& pages,
                            const AttentionConfig& c) {
  const Tensor y = Tensor::empty({q.rows(), c.heads * c.values()}, q.dtype(), q.device());
  if (y.numel() == 0) return y;
  if (takes_decode_attention(q, pages, c)) {
    decode_attention_into(y, q, places, pages, c);
    return y;
  }
  visit_stored(q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    launch<T>(q, places.positions, y, PageKeys<T>(pages, places), c);
  });
  return y;
}

void append_to_pages(const KvPages& pages, const KvPlaces& places, const Tensor& k, const Tensor& v) {
  if (k.rows() == 0) return;
  visit_stored(k.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t columns = std::gcd(k.dim(1), v.dim(1));
    with_pack<T>(columns, {&k, &v, &pages.k_SGd, &pages.v_SGd}, [&](auto n) {
      append<T, n><<<static_cast<unsigned>(k.rows()), 128, 0, current_stream().native()>>>(
          PageKeys<T>(pages, places), k.device_data<T>(), v.device_data<T>());
    });
  });
  check_launch("append to pages");
}

}  // namespace phalanx::cuda
