// Decoding in bf16, cut over the context: a warp takes 32 keys of a KV head at a time, for all the heads that
// share it. Scores come from tensor cores, keys as rows (lanes' columns as in few_rows.cu); the weighted sum
// of v is in f32, 8 columns a lane. Warps, and blocks, are put together in their order.
#include "phalanx/ops/decode_attention.h"

#include <limits>
#include <numbers>

#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/decode_attention_cuda.h"
#include "phalanx/ops/decode_keys.cuh"
#include "phalanx/ops/dependents.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kKeys = 32;      // of a warp at once
constexpr int kMostHeads = 8;  // that share a KV head: what an instruction takes
constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Arguments {
  PageKeys<bf16> keys;
  const bf16* q;
  bf16* y;
  float* parts;       // [T, H, splits, D], where there are several splits
  float2* softmaxes;  // [T, H, splits]: maximum, in units of ln 2, and sum
  int kv_heads;
  int group;  // heads of a KV head
  int splits;
  float scale;  // of scores, times log2 e
};

// What the warps of a block share: weights of keys, and at the end their sums.
template <int D>
struct Shared {
  float weights[kWarps][kKeys][kMostHeads];
  float shrinks[kWarps][kMostHeads];
  float maxima[kWarps][kMostHeads];
  float sums[kWarps][kMostHeads];
  float y[kWarps][kMostHeads][D];
};

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

  // Adds the first `seen` (1 to 32) of 32 rows that k and v [32, stride] have.
  __device__ void add(const bf16* k, const bf16* v, int64_t stride, int seen, float scale,
                      float (&weights)[kKeys][kMostHeads], float (&shrinks)[kMostHeads]) {
    const int lane = threadIdx.x % kWarp;
    uint4 keys[2][kChunks][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t row = 16 * i + 8 * half + lane / 4;
          keys[i][c][half] = *reinterpret_cast<const uint4*>(k + row * stride + c * 32 + lane % 4 * 8);
        }
      }
    }
    uint4 values[kKeys / kTogether];
#pragma unroll
    for (int i = 0; i < kKeys / kTogether; ++i) {
      const int row = i * kTogether + lane / kLanes;
      values[i] =
          row < seen ? *reinterpret_cast<const uint4*>(v + row * stride + lane % kLanes * 8) : uint4{};
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
    weigh(score, seen, scale, weights, shrinks);
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

// Block (split, KV head, row). H: heads of a KV head, or more.
template <int D, int H>
__global__ void __launch_bounds__(kThreads, D == 64 && H <= 4 ? 4 : 2) attend(Arguments a) {
  __shared__ __align__(16) Shared<D> shared;
  let_next_start();
  wait_for_kernel();
  const int split = static_cast<int>(blockIdx.x);
  const int64_t kv_head = blockIdx.y;
  const int64_t row = blockIdx.z;
  const int warp = threadIdx.x / kWarp;
  const int64_t head = row * a.kv_heads * a.group + kv_head * a.group;  // the first
  const int64_t stride = a.keys.key_width;
  const int64_t rows = int64_t{a.keys.positions[row]} + 1;
  const int64_t known = min(rows, a.keys.columns * a.keys.page_rows);
  Warp<D, H> mine;
  mine.load_query(a.q + head * D, a.group);
  const int64_t step = int64_t{a.splits} * kWarps * kKeys;
  for (int64_t begin = (int64_t{split} * kWarps + warp) * kKeys; begin < known; begin += step) {
    const int64_t page = a.keys.page_begin(row, begin / a.keys.page_rows);
    if (page < 0) continue;
    const int64_t at = (page + begin % a.keys.page_rows) * stride + kv_head * D;
    const int seen = static_cast<int>(min(int64_t{kKeys}, known - begin));
    mine.add(a.keys.k + at, a.keys.v + at, stride, seen, a.scale, shared.weights[warp], shared.shrinks[warp]);
  }
  if (rows > known && threadIdx.x == 0) report(a.keys.fault, FaultKind::position, rows - 1, 0);
  mine.leave(shared.maxima[warp], shared.sums[warp], shared.y[warp]);
  __syncthreads();
  for (int i = threadIdx.x; i < a.group * D; i += kThreads) {
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
    if (a.splits == 1) {
      a.y[(head + h) * D + i % D] = narrow<bf16>(sum > 0 ? y / sum : 0);
      continue;
    }
    const int64_t part = (head + h) * a.splits + split;
    a.parts[part * D + i % D] = y;
    if (i % D == 0) a.softmaxes[part] = {max, sum};
  }
}

// A block a row and head, a thread a column: the splits, in their order.
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

// Some blocks for each processor, and a few keys at least for each warp, were the tables full.
int splits_for(int64_t rows, int64_t kv_heads, int64_t capacity) {
  constexpr int64_t kBlocks = 4 * 132;
  const int64_t useful = (capacity + kWarps * kKeys - 1) / (kWarps * kKeys);
  return static_cast<int>(std::clamp<int64_t>(kBlocks / (rows * kv_heads), 1, std::max<int64_t>(1, useful)));
}

template <int D>
void launch(Arguments a, int64_t rows, const Tensor& y) {
  const int64_t heads = rows * a.kv_heads * a.group;
  Tensor parts;
  Tensor softmaxes;
  if (a.splits > 1) {
    parts = Tensor::empty({heads, a.splits, D}, DType::f32, y.device());
    softmaxes = Tensor::empty({heads, a.splits, 2}, DType::f32, y.device());
    a.parts = parts.device_data<float>();
    a.softmaxes = reinterpret_cast<float2*>(softmaxes.address());
  }
  const Grid grid = {.blocks = dim3(static_cast<unsigned>(a.splits), static_cast<unsigned>(a.kv_heads),
                                    static_cast<unsigned>(rows)),
                     .threads = dim3(kThreads)};
  if (a.group <= 1) {
    launch_early("decode_attention", attend<D, 1>, grid, a);
  } else if (a.group <= 4) {
    launch_early("decode_attention", attend<D, 4>, grid, a);
  } else {
    launch_early("decode_attention", attend<D, 8>, grid, a);
  }
  if (a.splits > 1) {
    const Grid of_heads = {.blocks = dim3(static_cast<unsigned>(heads)), .threads = dim3(D)};
    launch_early("decode_attention", merge<D>, of_heads, a.parts, a.softmaxes, a.y, a.splits);
  }
}

bool whole_words(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0; }

}  // namespace

bool takes_decode_attention(const Tensor& q, const KvPages& pages, const AttentionConfig& c) {
  return q.dtype() == DType::bf16 && (c.head_dim == 64 || c.head_dim == 128) && c.values() == c.head_dim &&
         c.heads / c.kv_heads <= kMostHeads && pages.page_rows % kKeys == 0 && q.rows() < 65536 &&
         c.kv_heads < 65536 && whole_words(q) && whole_words(pages.k_SGd) && whole_words(pages.v_SGd);
}

void decode_attention_into(const Tensor& y, const Tensor& q, const KvPlaces& places, const KvPages& pages,
                           const AttentionConfig& c) {
  const Arguments a = {.keys = PageKeys<bf16>(pages, places),
                       .q = q.device_data<bf16>(),
                       .y = y.device_data<bf16>(),
                       .parts = nullptr,
                       .softmaxes = nullptr,
                       .kv_heads = c.kv_heads,
                       .group = c.heads / c.kv_heads,
                       .splits = splits_for(q.rows(), c.kv_heads, pages.table_BP.dim(1) * pages.page_rows),
                       .scale = static_cast<float>(c.scale * std::numbers::log2e)};
  c.head_dim == 64 ? launch<64>(a, q.rows(), y) : launch<128>(a, q.rows(), y);
}

}  // namespace phalanx::cuda
