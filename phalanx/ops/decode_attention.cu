// Decoding in bf16, cut over the context: a warp takes 32 keys of a KV head at a time, for all the heads that
// share it. Scores come from tensor cores, keys as rows: a lane's 8 columns are not those that an instruction
// has next to each other, but of a sum over columns any order will do. The weighted sum of v is in f32, 8
// columns a lane. Warps, the blocks of a cluster, and clusters are put together in their order. What a warp
// takes next but one is asked of the L2 cache, at first before the kernel in front has ended, if positions
// and tables are at rest. A row that is new is written by the warp that reads it.
#include "phalanx/ops/decode_attention.h"

#include <limits>
#include <numbers>

#include "phalanx/ops/at_rest.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/decode_attention_cuda.h"
#include "phalanx/ops/decode_keys.cuh"
#include "phalanx/ops/dependents.cuh"
#include "phalanx/ops/hopper.cuh"
#include "phalanx/ops/rope.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kKeys = 32;      // of a warp at once
constexpr int kMostHeads = 8;  // that share a KV head: what an instruction takes
constexpr int kMostCluster = 8;
constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Arguments {
  PageKeys<bf16> keys;
  const bf16* q;
  const bf16* k;  // rows that are new, still to be turned and appended; null: there are none
  const bf16* v;
  bf16* y;
  float* parts;       // [T, H, clusters, D], where a head has several clusters
  float2* softmaxes;  // [T, H, clusters]: maximum, in units of ln 2, and sum
  int kv_heads;
  int group;     // heads of a KV head
  int splits;    // blocks of a KV head of a row
  int cluster;   // so many of them in each
  bool at_rest;  // positions and tables
  float scale;   // of scores, times log2 e

  int clusters() const { return splits / cluster; }
};

// What the warps of a block share: weights of keys, and at the end their sums.
template <int D>
struct Shared {
  float weights[kWarps][kKeys][kMostHeads];
  float shrinks[kWarps][kMostHeads];
  float maxima[kWarps][kMostHeads];
  float sums[kWarps][kMostHeads];
  float y[kWarps][kMostHeads][D];
  float cosines[D / 2];
  float sines[D / 2];
  // Of the block:
  float y_of_all[kMostHeads][D];
  float max_of_all[kMostHeads];
  float sum_of_all[kMostHeads];
};

#if PHALANX_SM90A

// score [16, 8] += k [16, 16] · q [8, 16]ᵀ.
__device__ void multiply_add(float (&score)[4], uint32_t k0, uint32_t k1, uint32_t k2, uint32_t k3,
                             uint32_t q0, uint32_t q1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(score[0]), "+f"(score[1]), "+f"(score[2]), "+f"(score[3])
      : "r"(k0), "r"(k1), "r"(k2), "r"(k3), "r"(q0), "r"(q1));
}

// Over the lanes that have the same `lane % 4`.
__device__ float max_of_keys(float v) {
  for (int step = 4; step < kWarp; step *= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, step));
  return v;
}
__device__ float sum_of_keys(float v) {
  for (int step = 4; step < kWarp; step *= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}

// 8 bf16.
__device__ void widen_words(uint4 words, float (&out)[8]) {
  const uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(all[i] << 16);
    out[2 * i + 1] = __uint_as_float(all[i] & 0xffff0000u);
  }
}

__device__ uint4 narrow_words(const float (&v)[8]) {
  const auto pair = [&](int i) {
    return uint32_t{narrow<bf16>(v[2 * i]).bits} | uint32_t{narrow<bf16>(v[2 * i + 1]).bits} << 16;
  };
  return {pair(0), pair(1), pair(2), pair(3)};
}

// Rows of k and v that a warp takes at once.
struct Run {
  const bf16* k;
  const bf16* v;
  int seen;  // 1 to 32 of them; 0: none are there
};

// Asks the L2 cache, which sees what others write, for all sectors of 32 bytes.
template <int D>
__device__ void prefetch(const Run& run, int stride) {
  constexpr int kSector = 16;  // elements
  constexpr int kSectors = D / kSector;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kSectors; ++i) {
    const int row = i * (kWarp / kSectors) + lane / kSectors;
    if (row >= run.seen) continue;
    const int at = row * stride + lane % kSectors * kSector;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(run.k + at));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(run.v + at));
  }
}

// One warp's query row of the heads of a KV head, and its softmax so far. Of scores a lane has heads
// 2 · (lane % 4) and the next, at keys lane / 4, and 8, 16 and 24 further; of y, columns
// 8 · (lane % (D / 8)) and on, of keys lane / (D / 8) and so on.
template <int D, int H>
struct Warp {
  static constexpr int kChunks = D / 32;            // of 32 columns of q and k
  static constexpr int kLanes = D / 8;              // for a row of v
  static constexpr int kTogether = kWarp / kLanes;  // rows of v at once

  uint4 q[kChunks];
  float max[2] = {kNone, kNone};
  float sum[2] = {0, 0};  // of this lane's keys
  float y[H][8] = {};

  __device__ void load_query(const bf16* heads, int group) {
    const int lane = threadIdx.x % kWarp;
    const bool there = lane / 4 < group;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      q[c] = there ? *reinterpret_cast<const uint4*>(heads + lane / 4 * D + c * 32 + lane % 4 * 8) : uint4{};
    }
  }

  __device__ void turn_query(const float* cosines, const float* sines) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int c = 0; c < kChunks / 2; ++c) {
      float x[8];
      float y[8];
      widen_words(q[c], x);
      widen_words(q[c + kChunks / 2], y);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int i = c * 32 + lane % 4 * 8 + j;
        const float turned = fmaf(-y[j], sines[i], x[j] * cosines[i]);
        y[j] = fmaf(x[j], sines[i], y[j] * cosines[i]);
        x[j] = turned;
      }
      q[c] = narrow_words(x);
      q[c + kChunks / 2] = narrow_words(y);
    }
  }

  // Adds a run. Values that are not seen count as zero, whatever is there.
  __device__ void add(const Run& run, int stride, float scale, Shared<D>& shared) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    auto& weights = shared.weights[warp];
    auto& shrinks = shared.shrinks[warp];
    const int lane = threadIdx.x % kWarp;
    uint4 keys[2][kChunks][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = 16 * i + 8 * half + lane / 4;
          keys[i][c][half] = *reinterpret_cast<const uint4*>(run.k + row * stride + c * 32 + lane % 4 * 8);
        }
      }
    }
    uint4 values[kKeys / kTogether];
#pragma unroll
    for (int i = 0; i < kKeys / kTogether; ++i) {
      const int row = i * kTogether + lane / kLanes;
      values[i] = row < run.seen ? *reinterpret_cast<const uint4*>(run.v + row * stride + lane % kLanes * 8)
                                 : uint4{};
    }
    float score[2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const uint4 a = keys[i][c][0];
        const uint4 b = keys[i][c][1];
        multiply_add(score[i], a.x, b.x, a.y, b.y, q[c].x, q[c].y);
        multiply_add(score[i], a.z, b.z, a.w, b.w, q[c].z, q[c].w);
      }
    }
    weigh(score, run.seen, scale, weights, shrinks);
    __syncwarp();
    sum_values(values, weights, shrinks);
    __syncwarp();  // before the next ones are written
  }

  // Scores become weights.
  __device__ void weigh(float (&score)[2][4], int seen, float scale, float (&weights)[kKeys][kMostHeads],
                        float (&shrinks)[kMostHeads]) {
    const int lane = threadIdx.x % kWarp;
    float largest[2] = {kNone, kNone};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = 16 * i + 8 * (j / 2) + lane / 4;
        score[i][j] = key < seen ? score[i][j] * scale : kNone;
        largest[j % 2] = fmaxf(largest[j % 2], score[i][j]);
      }
    }
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = fmaxf(max[h], max_of_keys(largest[h]));
      shrink[h] = exp2f(max[h] - largest[h]);  // 0 at first
      max[h] = largest[h];
      sum[h] *= shrink[h];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = 16 * i + 8 * half + lane / 4;
        const float2 w = {exp2f(score[i][2 * half] - max[0]), exp2f(score[i][2 * half + 1] - max[1])};
        sum[0] += w.x;
        sum[1] += w.y;
        *reinterpret_cast<float2*>(&weights[key][lane % 4 * 2]) = w;
      }
    }
    if (lane < 4) *reinterpret_cast<float2*>(&shrinks[lane * 2]) = {shrink[0], shrink[1]};
  }

  __device__ void sum_values(const uint4 (&values)[kKeys / kTogether],
                             const float (&weights)[kKeys][kMostHeads], const float (&shrinks)[kMostHeads]) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int h = 0; h < H; ++h) {
      const float shrink = shrinks[h];
#pragma unroll
      for (int c = 0; c < 8; ++c) y[h][c] *= shrink;
    }
#pragma unroll
    for (int i = 0; i < kKeys / kTogether; ++i) {
      float v[8];
      widen_words(values[i], v);
      const float* const w = weights[i * kTogether + lane / kLanes];
#pragma unroll
      for (int h = 0; h < H; ++h) {
        const float weight = w[h];
#pragma unroll
        for (int c = 0; c < 8; ++c) y[h][c] = fmaf(weight, v[c], y[h][c]);
      }
    }
  }

  // Into the block's shared memory.
  __device__ void leave(float (&maxima)[kMostHeads], float (&sums)[kMostHeads], float (&to)[kMostHeads][D]) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int h = 0; h < 2; ++h) sum[h] = sum_of_keys(sum[h]);
    if (lane < 4) {
      for (int h = 0; h < 2; ++h) {
        maxima[lane * 2 + h] = max[h];
        sums[lane * 2 + h] = sum[h];
      }
    }
#pragma unroll
    for (int h = 0; h < H; ++h) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        float all = y[h][c];
        for (int step = kLanes; step < kWarp; step *= 2) all += __shfl_xor_sync(~0u, all, step);
        if (lane < kLanes) to[h][lane * 8 + c] = all;
      }
    }
  }
};

// What a block reads and writes: split, KV head, row.
struct Place {
  int split;
  int kv_head;
  int row;
  int position;  // the row's
  int known;     // positions that it sees

  __device__ explicit Place(const Arguments& a)
      : split(static_cast<int>(blockIdx.x)),
        kv_head(static_cast<int>(blockIdx.y)),
        row(static_cast<int>(blockIdx.z)),
        position(a.keys.positions[row]),
        known(static_cast<int>(min(int64_t{position} + 1, a.keys.columns * a.keys.page_rows))) {}

  // The first head of the KV head, among those of all rows.
  __device__ int64_t head(const Arguments& a) const {
    return (int64_t{row} * a.kv_heads + kv_head) * a.group;
  }

  // Where position `begin`, a multiple of kKeys, and on lie.
  template <int D>
  __device__ Run run(const Arguments& a, int begin) const {
    if (begin >= known) return {nullptr, nullptr, 0};
    const int page_rows = static_cast<int>(a.keys.page_rows);
    const int64_t page = a.keys.page_begin(row, begin / page_rows);
    if (page < 0) return {nullptr, nullptr, 0};
    const int64_t at = (page + begin % page_rows) * a.keys.key_width + kv_head * D;
    return {a.keys.k + at, a.keys.v + at, min(kKeys, known - begin)};
  }
};

// The warp whose keys are the last writes the new one there, turned if cosines are not null.
template <int D>
__device__ void append(const Arguments& a, const Place& p, const Shared<D>& shared, bool turns) {
  const int lane = threadIdx.x % kWarp;
  const int64_t page = a.keys.page_begin(p.row, p.position / a.keys.page_rows);
  if (page < 0) return;
  const int64_t to = (page + p.position % a.keys.page_rows) * a.keys.key_width + p.kv_head * D;
  const int64_t from = p.row * a.keys.key_width + p.kv_head * D;
  for (int i = lane; i < D / 2; i += kWarp) {
    bf16 low = a.k[from + i];
    bf16 high = a.k[from + i + D / 2];
    if (turns) {
      const float x = widen(low);
      const float y = widen(high);
      low = narrow<bf16>(fmaf(-y, shared.sines[i], x * shared.cosines[i]));
      high = narrow<bf16>(fmaf(x, shared.sines[i], y * shared.cosines[i]));
    }
    a.keys.k[to + i] = low;
    a.keys.k[to + i + D / 2] = high;
  }
  for (int i = lane; i < D; i += kWarp) a.keys.v[to + i] = a.v[from + i];
  __threadfence_block();
  __syncwarp();
}

// The block's warps, in their order.
template <int D>
__device__ void join_warps(Shared<D>& shared, int group) {
  for (int i = threadIdx.x; i < group * D; i += kThreads) {
    const int h = i / D;
    float max = kNone;
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, shared.maxima[w][h]);
    float sum = 0;
    float y = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (shared.maxima[w][h] == kNone) continue;
      const float shrink = exp2f(shared.maxima[w][h] - max);
      sum = fmaf(shared.sums[w][h], shrink, sum);
      y = fmaf(shared.y[w][h][i % D], shrink, y);
    }
    shared.y_of_all[h][i % D] = y;
    if (i % D == 0) {
      shared.max_of_all[h] = max;
      shared.sum_of_all[h] = sum;
    }
  }
}

// The cluster's blocks, in their order; each writes its share of the columns.
template <int D>
__device__ void join_blocks(const Arguments& a, const Place& p, const Shared<D>& shared) {
  const int rank = static_cast<int>(cluster_rank());
  const int own = (a.group * D + a.cluster - 1) / a.cluster;
  const int end = min(a.group * D, (rank + 1) * own);
  for (int i = rank * own + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
    const int h = i / D;
    float maxima[kMostCluster];
    float sums[kMostCluster];
    float ys[kMostCluster];
#pragma unroll
    for (int b = 0; b < kMostCluster; ++b) {
      maxima[b] = b < a.cluster ? load_from(&shared.max_of_all[h], b) : kNone;
      sums[b] = b < a.cluster ? load_from(&shared.sum_of_all[h], b) : 0;
      ys[b] = b < a.cluster ? load_from(&shared.y_of_all[h][i % D], b) : 0;
    }
    float max = kNone;
#pragma unroll
    for (int b = 0; b < kMostCluster; ++b) max = fmaxf(max, maxima[b]);
    float sum = 0;
    float y = 0;
#pragma unroll
    for (int b = 0; b < kMostCluster; ++b) {
      const float shrink = maxima[b] == kNone ? 0 : exp2f(maxima[b] - max);
      sum = fmaf(sums[b], shrink, sum);
      y = fmaf(ys[b], shrink, y);
    }
    if (!a.parts) {
      a.y[(p.head(a) + h) * D + i % D] = narrow<bf16>(sum > 0 ? y / sum : 0);
      continue;
    }
    const int64_t part = ((p.head(a) + h) * a.splits + p.split) / a.cluster;
    a.parts[part * D + i % D] = y;
    if (i % D == 0) a.softmaxes[part] = {max, sum};
  }
}

#endif

// Block (split, KV head, row). H: heads of a KV head, or more.
template <int D, int H>
__global__ void __launch_bounds__(kThreads, D == 64 && H <= 4 ? 4 : 2)
    attend(const __grid_constant__ Arguments a, const __grid_constant__ Turns turns) {
#if PHALANX_SM90A
  __shared__ __align__(16) Shared<D> shared;
  let_next_start();
  if (!a.at_rest) wait_for_kernel();
  const Place p(a);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto stride = static_cast<int>(a.keys.key_width);
  const int step = a.splits * kWarps * kKeys;
  int begin = (p.split * kWarps + warp) * kKeys;
  Run run = p.template run<D>(a, begin);
  Run next = p.template run<D>(a, begin + step);
  prefetch<D>(run, stride);
  prefetch<D>(next, stride);
  for (int i = threadIdx.x; i < turns.pairs; i += kThreads) {
    turns.angle(p.position, i, shared.cosines[i], shared.sines[i]);
  }
  wait_for_kernel();
  __syncthreads();
  // The warp that has the position's key, if there is room for it.
  const int last = p.position / kKeys * kKeys;
  if (a.k && p.position >= 0 && p.position < p.known && last % step == begin) {
    append<D>(a, p, shared, turns.pairs > 0);
  }
  Warp<D, H> mine;
  mine.load_query(a.q + p.head(a) * D, a.group);
  if (turns.pairs > 0) mine.turn_query(shared.cosines, shared.sines);
  for (; begin < p.known; begin += step) {
    if (run.seen > 0) mine.add(run, stride, a.scale, shared);
    run = next;
    next = p.template run<D>(a, begin + 2 * step);
    prefetch<D>(next, stride);
  }
  if (p.position >= p.known || p.position < 0) {
    if (threadIdx.x == 0) report(a.keys.fault, FaultKind::position, p.position, 0);
  }
  mine.leave(shared.maxima[warp], shared.sums[warp], shared.y[warp]);
  __syncthreads();
  join_warps(shared, a.group);
  cluster_sync();
  join_blocks(a, p, shared);
  cluster_sync();  // other blocks may still read what this one has
#endif
}

// A block a row and head, a thread a column: the clusters, in their order.
template <int D>
__global__ void __launch_bounds__(D) merge(const float* parts, const float2* softmaxes, bf16* y, int splits) {
  let_next_start();
  wait_for_kernel();
  const int64_t head = blockIdx.x;
  const float2* const of = softmaxes + head * splits;
  float max = kNone;
  for (int s = 0; s < splits; ++s) max = fmaxf(max, of[s].x);
  float sum = 0;
  float value = 0;
#pragma unroll 4
  for (int s = 0; s < splits; ++s) {
    const float2 softmax = of[s];
    const float part = parts[(head * splits + s) * D + threadIdx.x];
    const float shrink = softmax.x == kNone ? 0 : exp2f(softmax.x - max);
    sum = fmaf(softmax.y, shrink, sum);
    value = fmaf(part, shrink, value);
  }
  y[head * D + threadIdx.x] = narrow<bf16>(sum > 0 ? value / sum : 0);
}

// Some blocks for each processor, and a few keys at least for each warp, were the tables full: one run where
// a cluster does for all, else several.
int splits_for(int64_t rows, int64_t kv_heads, int64_t capacity) {
  constexpr int64_t kBlocks = 4 * 132;
  constexpr int64_t kRun = kWarps * kKeys;
  constexpr int64_t kSeveral = 4;
  const int64_t wanted = std::max<int64_t>(1, kBlocks / (rows * kv_heads));
  const int64_t few = std::min({wanted, int64_t{kMostCluster}, (capacity + kRun - 1) / kRun});
  const int64_t many = std::min(wanted, capacity / (kRun * kSeveral)) / kMostCluster * kMostCluster;
  return static_cast<int>(std::max({int64_t{1}, few, many}));
}

template <int D>
void launch(Arguments a, const Turns& turns, int64_t rows, const Tensor& y) {
  const int64_t heads = rows * a.kv_heads * a.group;
  Tensor parts;
  Tensor softmaxes;
  if (a.clusters() > 1) {
    parts = Tensor::empty({heads, a.clusters(), D}, DType::f32, y.device());
    softmaxes = Tensor::empty({heads, a.clusters(), 2}, DType::f32, y.device());
    a.parts = parts.device_data<float>();
    a.softmaxes = reinterpret_cast<float2*>(softmaxes.address());
  }
  const Grid grid = {.blocks = dim3(static_cast<unsigned>(a.splits), static_cast<unsigned>(a.kv_heads),
                                    static_cast<unsigned>(rows)),
                     .threads = dim3(kThreads),
                     .cluster = static_cast<unsigned>(a.cluster)};
  constexpr const char* kOp = "decode_attention";
  if (a.group <= 1) {
    launch_early(kOp, attend<D, 1>, grid, a, turns);
  } else if (a.group <= 4) {
    launch_early(kOp, attend<D, 4>, grid, a, turns);
  } else {
    launch_early(kOp, attend<D, 8>, grid, a, turns);
  }
  if (!a.parts) return;
  const Grid of_heads = {.blocks = dim3(static_cast<unsigned>(heads)), .threads = dim3(D)};
  launch_early(kOp, merge<D>, of_heads, a.parts, a.softmaxes, a.y, a.clusters());
}

bool whole_words(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0; }

// Whether the kernel has a body here: without one it has no shared memory. All GPUs of a process are alike.
bool has_kernel() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, attend<64, 1>), "cudaFuncGetAttributes");
    return attributes.sharedSizeBytes > 0;
  }();
  return has;
}

Arguments arguments_of(const Tensor& y, const Tensor& q, const KvPlaces& places, const KvPages& pages,
                       const AttentionConfig& c) {
  const int splits = splits_for(q.rows(), c.kv_heads, pages.table_BP.dim(1) * pages.page_rows);
  return {.keys = PageKeys<bf16>(pages, places),
          .q = q.device_data<bf16>(),
          .k = nullptr,
          .v = nullptr,
          .y = y.device_data<bf16>(),
          .parts = nullptr,
          .softmaxes = nullptr,
          .kv_heads = c.kv_heads,
          .group = c.heads / c.kv_heads,
          .splits = splits,
          .cluster = std::min(splits, kMostCluster),
          .at_rest = false,
          .scale = static_cast<float>(c.scale * std::numbers::log2e)};
}

void launch(const Arguments& a, const Turns& turns, const Tensor& y, int64_t head_dim) {
  head_dim == 64 ? launch<64>(a, turns, y.rows(), y) : launch<128>(a, turns, y.rows(), y);
}

}  // namespace

bool takes_decode_attention(const Tensor& q, const KvPages& pages, const AttentionConfig& c) {
  return q.dtype() == DType::bf16 && (c.head_dim == 64 || c.head_dim == 128) && c.values() == c.head_dim &&
         c.heads / c.kv_heads <= kMostHeads && pages.page_rows % kKeys == 0 && q.rows() < 65536 &&
         c.kv_heads < 65536 && whole_words(q) && whole_words(pages.k_SGd) && whole_words(pages.v_SGd) &&
         has_kernel();
}

void decode_attention_into(const Tensor& y, const Tensor& q, const KvPlaces& places, const KvPages& pages,
                           const AttentionConfig& c) {
  launch(arguments_of(y, q, places, pages, c), Turns(Rotation(), 1), y, c.head_dim);
}

bool append_and_attend_into(const Tensor& y, const KvPages& pages, const KvPlaces& places,
                            const AttentionRows& rows, const AttentionConfig& c) {
  if (!takes_decode_attention(rows.q_THd, pages, c)) return false;
  const Turns turns(rows.rotation ? *rows.rotation : Rotation(), 1);
  if (turns.pairs != 0 && 2 * turns.pairs != c.head_dim) return false;
  Arguments a = arguments_of(y, rows.q_THd, places, pages, c);
  a.k = rows.k_TGd.device_data<bf16>();
  a.v = rows.v_TGd.device_data<bf16>();
  a.at_rest = AtRest::on();
  launch(a, turns, y, c.head_dim);
  return true;
}

}  // namespace phalanx::cuda
