// Attention in f32 and f64, any head size, deterministic: the GPU's own oracle. A block has some rows of one
// head, eight warps among which they are shared; what they meet comes by in chunks of 32 rows through shared
// memory, one row a lane.
#include <limits>

#include "phalanx/ops/attention_cudnn.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kChunk = kWarp;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// d columns of a head of q and k, e of one of v and y; rows are strided as the tensors are.

// Rows first … first + rows − 1 of a tile (queries, or keys), which one block has.
struct Piece {
  AttentionTile tile;
  int64_t first;
  int64_t rows;
};

template <class T>
struct Arguments {
  const T* q;
  const T* k;
  const T* v;
  T* y;            // read by backward
  T* log_sum_exp;  // [T, H], read by backward
  const T* dy;
  const T* delta;  // [T, H]: Σ dy·y of a head
  T* dq;
  T* dk;
  T* dv;
  const Piece* pieces;
  int64_t head_dim;
  int64_t value_dim;
  int heads;
  int kv_heads;
  T scale;
  bool adds;

  __device__ int group() const { return heads / kv_heads; }
  // Where a head's columns of a row begin.
  __device__ int64_t query(int64_t row, int head) const { return (row * heads + head) * head_dim; }
  __device__ int64_t output(int64_t row, int head) const { return (row * heads + head) * value_dim; }
  __device__ int64_t key(int64_t row, int kv_head) const { return (row * kv_heads + kv_head) * head_dim; }
  __device__ int64_t value(int64_t row, int kv_head) const { return (row * kv_heads + kv_head) * value_dim; }
};

// Rows of so many columns in shared memory, apart by one more, so that lanes that read a column each have a
// bank.
template <class T>
struct SharedRows {
  T* data;
  int64_t columns;

  __device__ T* row(int64_t r) const { return data + r * (columns + 1); }
  __device__ T* end(int64_t rows) const { return row(rows); }
  // Row r is at from(r), those behind `rows` of `all` are 0.
  template <class F>
  __device__ void load(int64_t rows, int64_t all, F from) const {
    for (int64_t i = threadIdx.x; i < all * columns; i += kThreads) {
      const int64_t r = i / columns;
      row(r)[i % columns] = r < rows ? from(r)[i % columns] : T(0);
    }
  }
  // The first rows go to to(r).
  template <class F>
  __device__ void save(int64_t rows, F to) const {
    for (int64_t i = threadIdx.x; i < rows * columns; i += kThreads) {
      const int64_t r = i / columns;
      to(r)[i % columns] = row(r)[i % columns];
    }
  }
};

inline size_t shared_elements(int64_t rows, int64_t columns) {
  return static_cast<size_t>(rows * (columns + 1));
}

template <class T>
__device__ T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
  for (int64_t i = 0; i < n; ++i) sum = fma(a[i], b[i], sum);
  return sum;
}

template <class T>
__device__ T warp_sum(T v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}
template <class T>
__device__ T warp_max(T v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v = fmax(v, __shfl_xor_sync(~0u, v, step));
  return v;
}

// to[c] = shrink · to[c] + Σ over lanes of weight · staged row of that lane, for a warp's own row.
template <class T>
__device__ void add_rows(T* to, const SharedRows<T>& staged, T shrink, T weight) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t begin = 0; begin < staged.columns; begin += kWarp) {
    const int64_t c = begin + lane;
    const bool mine = c < staged.columns;
    T sum = mine ? shrink * to[c] : T(0);
    for (int j = 0; j < kChunk; ++j) {
      const T w = __shfl_sync(~0u, weight, j);
      if (mine) sum = fma(w, staged.row(j)[c], sum);
    }
    if (mine) to[c] = sum;
  }
}

// The chunk of keys and values that begins at row `first`, of which so many are left, in place of the last.
template <class T>
__device__ void load_keys(const Arguments<T>& a, const SharedRows<T>& k, const SharedRows<T>& v,
                          int64_t first, int64_t left, int kv_head) {
  __syncthreads();
  const int64_t here = min(int64_t{kChunk}, left);
  k.load(here, kChunk, [&](int64_t r) { return a.k + a.key(first + r, kv_head); });
  v.load(here, kChunk, [&](int64_t r) { return a.v + a.value(first + r, kv_head); });
  __syncthreads();
}

// Softmax as it goes: of each row the maximum and the sum so far, y not yet divided by it.
template <class T>
__global__ void forward(Arguments<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Piece p = a.pieces[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / a.group();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const SharedRows<T> k = {reinterpret_cast<T*>(shared), a.head_dim};
  const SharedRows<T> v = {k.end(kChunk), a.value_dim};
  const SharedRows<T> q = {v.end(kChunk), a.head_dim};
  const SharedRows<T> y = {q.end(p.rows), a.value_dim};
  T* const max = y.end(p.rows);
  T* const sum = max + p.rows;
  const int64_t row = p.tile.first_query + p.first;
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  q.load(p.rows, p.rows, [&](int64_t r) { return a.q + a.query(row + r, head); });
  y.load(a.adds ? p.rows : 0, p.rows, [&](int64_t r) { return a.y + a.output(row + r, head); });
  for (int64_t r = threadIdx.x; r < p.rows; r += kThreads) {
    max[r] = a.adds ? a.log_sum_exp[(row + r) * a.heads + head] : kNone;
    sum[r] = max[r] == kNone ? T(0) : T(1);
  }
  const int64_t keys = p.tile.causal ? p.first + p.rows : p.tile.keys;
  for (int64_t begin = 0; begin < keys; begin += kChunk) {
    load_keys(a, k, v, p.tile.first_key + begin, keys - begin, kv_head);
    for (int64_t r = warp; r < p.rows; r += kWarps) {
      const int64_t seen = p.tile.causal ? p.first + r + 1 : keys;
      if (begin >= seen) continue;
      const bool sees = begin + lane < seen;
      const T score = sees ? a.scale * dot(q.row(r), k.row(lane), a.head_dim) : kNone;
      const T largest = fmax(max[r], warp_max(score));
      const T shrink = max[r] == kNone ? T(0) : exp(max[r] - largest);
      const T weight = sees ? exp(score - largest) : T(0);
      const T all = warp_sum(weight);
      __syncwarp();
      if (lane == 0) {
        sum[r] = fma(sum[r], shrink, all);
        max[r] = largest;
      }
      add_rows(y.row(r), v, shrink, weight);
      __syncwarp();
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.rows * a.value_dim; i += kThreads) {
    const int64_t r = i / a.value_dim;
    const T value = y.row(r)[i % a.value_dim];
    a.y[a.output(row + r, head) + i % a.value_dim] = sum[r] == T(0) ? value : value / sum[r];
  }
  for (int64_t r = threadIdx.x; r < p.rows; r += kThreads) {
    a.log_sum_exp[(row + r) * a.heads + head] = max[r] == kNone ? kNone : max[r] + log(sum[r]);
  }
}

// delta [T·H] = Σ over a head's columns of dy·y; a warp each.
template <class T>
__global__ void deltas(const T* dy, const T* y, T* delta, int64_t count, int64_t value_dim) {
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (i >= count) return;
  T sum = 0;
  for (int64_t c = threadIdx.x % kWarp; c < value_dim; c += kWarp) {
    sum = fma(dy[i * value_dim + c], y[i * value_dim + c], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) delta[i] = sum;
}

// What one (query, key) pair that meets adds: weight p to dv, and ds to dq and dk.
template <class T>
struct PairGradient {
  T p;
  T ds;
};
template <class T>
__device__ PairGradient<T> pair_gradient(const Arguments<T>& a, T score, T dp, int64_t row, int head) {
  const int64_t at = row * a.heads + head;
  const T p = exp(a.scale * score - a.log_sum_exp[at]);
  return {p, p * (dp - a.delta[at]) * a.scale};
}

// dq of some queries.
template <class T>
__global__ void backward_queries(Arguments<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Piece p = a.pieces[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / a.group();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const SharedRows<T> k = {reinterpret_cast<T*>(shared), a.head_dim};
  const SharedRows<T> v = {k.end(kChunk), a.value_dim};
  const SharedRows<T> q = {v.end(kChunk), a.head_dim};
  const SharedRows<T> dy = {q.end(p.rows), a.value_dim};
  const SharedRows<T> dq = {dy.end(p.rows), a.head_dim};
  const int64_t row = p.tile.first_query + p.first;
  q.load(p.rows, p.rows, [&](int64_t r) { return a.q + a.query(row + r, head); });
  dy.load(p.rows, p.rows, [&](int64_t r) { return a.dy + a.output(row + r, head); });
  dq.load(a.adds ? p.rows : 0, p.rows, [&](int64_t r) { return a.dq + a.query(row + r, head); });
  const int64_t keys = p.tile.causal ? p.first + p.rows : p.tile.keys;
  for (int64_t begin = 0; begin < keys; begin += kChunk) {
    load_keys(a, k, v, p.tile.first_key + begin, keys - begin, kv_head);
    for (int64_t r = warp; r < p.rows; r += kWarps) {
      const int64_t seen = p.tile.causal ? p.first + r + 1 : keys;
      if (begin >= seen) continue;
      const T score = dot(q.row(r), k.row(lane), a.head_dim);
      const T dp = dot(dy.row(r), v.row(lane), a.value_dim);
      const T ds = begin + lane < seen ? pair_gradient(a, score, dp, row + r, head).ds : T(0);
      add_rows(dq.row(r), k, T(1), ds);
    }
  }
  __syncthreads();
  dq.save(p.rows, [&](int64_t r) { return a.dq + a.query(row + r, head); });
}

// dk and dv of some keys, from the queries of all heads that share them.
template <class T>
__global__ void backward_keys(Arguments<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Piece p = a.pieces[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const SharedRows<T> q = {reinterpret_cast<T*>(shared), a.head_dim};
  const SharedRows<T> dy = {q.end(kChunk), a.value_dim};
  const SharedRows<T> k = {dy.end(kChunk), a.head_dim};
  const SharedRows<T> v = {k.end(p.rows), a.value_dim};
  const SharedRows<T> dk = {v.end(p.rows), a.head_dim};
  const SharedRows<T> dv = {dk.end(p.rows), a.value_dim};
  const int64_t key = p.tile.first_key + p.first;
  k.load(p.rows, p.rows, [&](int64_t r) { return a.k + a.key(key + r, kv_head); });
  v.load(p.rows, p.rows, [&](int64_t r) { return a.v + a.value(key + r, kv_head); });
  dk.load(a.adds ? p.rows : 0, p.rows, [&](int64_t r) { return a.dk + a.key(key + r, kv_head); });
  dv.load(a.adds ? p.rows : 0, p.rows, [&](int64_t r) { return a.dv + a.value(key + r, kv_head); });
  const int64_t first_chunk = p.tile.causal ? p.first / kChunk * kChunk : 0;
  for (int head = kv_head * a.group(); head < (kv_head + 1) * a.group(); ++head) {
    for (int64_t begin = first_chunk; begin < p.tile.queries; begin += kChunk) {
      __syncthreads();
      const int64_t row = p.tile.first_query + begin;
      const int64_t here = min(int64_t{kChunk}, p.tile.queries - begin);
      q.load(here, kChunk, [&](int64_t r) { return a.q + a.query(row + r, head); });
      dy.load(here, kChunk, [&](int64_t r) { return a.dy + a.output(row + r, head); });
      __syncthreads();
      for (int64_t r = warp; r < p.rows; r += kWarps) {
        const T score = dot(k.row(r), q.row(lane), a.head_dim);
        const T dp = dot(v.row(r), dy.row(lane), a.value_dim);
        const bool sees = lane < here && (!p.tile.causal || begin + lane >= p.first + r);
        const auto g = sees ? pair_gradient(a, score, dp, row + lane, head) : PairGradient<T>{T(0), T(0)};
        add_rows(dk.row(r), q, T(1), g.ds);
        add_rows(dv.row(r), dy, T(1), g.p);
      }
    }
  }
  __syncthreads();
  dk.save(p.rows, [&](int64_t r) { return a.dk + a.key(key + r, kv_head); });
  dv.save(p.rows, [&](int64_t r) { return a.dv + a.value(key + r, kv_head); });
}

// Blocks of as many rows as shared memory has room for, beside the chunk that goes by.
struct Plan {
  int64_t rows = 0;
  size_t bytes = 0;
};

template <class T, class Kernel>
Plan plan_of(Kernel kernel, const AttentionConfig& c, int64_t own_head_rows, int64_t own_value_rows) {
  int device = 0;
  int most = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  for (int64_t rows = 32; rows >= kWarps; rows /= 2) {
    const size_t elements = shared_elements(kChunk, c.head_dim) + shared_elements(kChunk, c.values()) +
                            static_cast<size_t>(own_head_rows) * shared_elements(rows, c.head_dim) +
                            static_cast<size_t>(own_value_rows) * shared_elements(rows, c.values()) +
                            2 * static_cast<size_t>(rows);
    const size_t bytes = elements * sizeof(T);
    if (bytes > static_cast<size_t>(most)) continue;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
    return {rows, bytes};
  }
  throw Error("attention on a GPU: heads of {} and {} columns do not fit its shared memory", c.head_dim,
              c.values());
}

// The tiles' queries (or keys), cut.
Tensor pieces_of(std::span<const AttentionTile> tiles, int64_t rows, bool of_keys, Device device) {
  PooledVector<Piece> pieces;
  for (const AttentionTile& t : tiles) {
    const int64_t all = of_keys ? t.keys : t.queries;
    for (int64_t first = 0; first < all; first += rows) {
      pieces.push_back({t, first, std::min(rows, all - first)});
    }
  }
  const Tensor host = Tensor::empty({std::ssize(pieces), int64_t{sizeof(Piece)}}, DType::u8);
  std::copy_n(reinterpret_cast<const std::byte*>(pieces.data()), host.bytes(), host.raw());
  return host.to(device);
}

template <class T>
Arguments<T> arguments_of(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& c) {
  Arguments<T> a = {};
  a.q = q.device_data<T>();
  a.k = k.device_data<T>();
  a.v = v.device_data<T>();
  a.head_dim = c.head_dim;
  a.value_dim = c.values();
  a.heads = c.heads;
  a.kv_heads = c.kv_heads;
  a.scale = static_cast<T>(c.scale);
  return a;
}

template <class T, class Kernel>
void launch(Kernel kernel, Arguments<T> a, const Plan& plan, const Tensor& pieces, int heads) {
  if (pieces.rows() == 0) return;
  a.pieces = reinterpret_cast<const Piece*>(pieces.address());
  const dim3 grid(static_cast<unsigned>(pieces.rows()), static_cast<unsigned>(heads));
  kernel<<<grid, kThreads, plan.bytes, current_stream().native()>>>(a);
  check_launch("attention");
}

struct MinusInfinity {
  __device__ float operator()() const { return -std::numeric_limits<float>::infinity(); }
};

}  // namespace

void attention(const std::array<Tensor, 3>& q_k_v, const Attended& out, std::span<const AttentionTile> tiles,
               bool adds, const AttentionConfig& c) {
  const auto& [q, k, v] = q_k_v;
  if (q.dtype() == DType::bf16) return attention_bf16(q_k_v, out, tiles, adds, c);
  visit_float(q.dtype(), [&, &q = q, &k = k, &v = v](auto zero) {
    using T = decltype(zero);
    Arguments<T> a = arguments_of<T>(q, k, v, c);
    a.y = out.y_THd.device_data<T>();
    a.log_sum_exp = out.log_sum_exp_TH.device_data<T>();
    a.adds = adds;
    const Plan plan = plan_of<T>(forward<T>, c, 1, 1);
    launch(forward<T>, a, plan, pieces_of(tiles, plan.rows, false, q.device()), c.heads);
  });
}

void attention_backward(const AttentionBackward& in, const AttentionGradients& out,
                        std::span<const AttentionTile> tiles, bool adds, const AttentionConfig& c) {
  const Device device = in.q_THd.device();
  if (in.q_THd.dtype() == DType::bf16) return attention_backward_bf16(in, out, tiles, adds, c);
  visit_float(in.q_THd.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const Tensor& y = in.forward.y_THd;
    const Tensor delta = Tensor::empty({y.rows(), c.heads}, y.dtype(), device);
    Arguments<T> a = arguments_of<T>(in.q_THd, in.k_SGd, in.v_SGd, c);
    a.y = y.device_data<T>();
    a.log_sum_exp = in.forward.log_sum_exp_TH.device_data<T>();
    a.dy = in.dy_THd.device_data<T>();
    a.delta = delta.device_data<T>();
    a.dq = out.dq_THd.device_data<T>();
    a.dk = out.dk_TGd.device_data<T>();
    a.dv = out.dv_TGd.device_data<T>();
    a.adds = adds;
    if (delta.numel() > 0) {
      deltas<T><<<blocks_for(delta.numel(), kWarps), kThreads, 0, current_stream().native()>>>(
          a.dy, a.y, delta.device_data<T>(), delta.numel(), c.values());
      check_launch("attention_backward");
    }
    const Plan queries = plan_of<T>(backward_queries<T>, c, 2, 1);
    launch(backward_queries<T>, a, queries, pieces_of(tiles, queries.rows, false, device), c.heads);
    const Plan keys = plan_of<T>(backward_keys<T>, c, 2, 2);
    launch(backward_keys<T>, a, keys, pieces_of(tiles, keys.rows, true, device), c.kv_heads);
  });
}

void fill_infinity(const Tensor& log_sum_exp) {
  elementwise("attended_nothing", MinusInfinity(), log_sum_exp);
}

}  // namespace phalanx::cuda
