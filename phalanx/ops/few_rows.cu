// Weights stream by: a block has a tile of 128 rows of a weight matrix and some of the columns, and fetches
// them 64 at a time, 16 KiB, into a ring that is all under way when it starts. Rows of x are what wgmma calls
// columns, so that 64 of them cost no more memory than one. Where matrices are short, the blocks of a
// cluster share a tile's columns; their sums meet in shared memory, in order. The first weights are fetched,
// or if others may still write them are on their way to the L2 cache, before the kernel in front has ended.
// Rows that are still to be normed are so in each stage, after every block has read them once for their sums
// of squares.
#include "phalanx/ops/few_rows.h"

#include <algorithm>
#include <bit>

#include "phalanx/ops/at_rest.h"
#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/dependents.cuh"
#include "phalanx/ops/hopper.cuh"
#include "phalanx/ops/tensor_map.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kMultipliers = 8;  // warps: two warpgroups, of 64 rows of weights each
constexpr int kMultiplying = kMultipliers * kWarp;
constexpr int kThreads = kMultiplying + kWarp;  // one warp fetches
constexpr int kBoxRows = 64;
constexpr int kTileRows = 2 * kBoxRows;
constexpr int kTerms = 64;  // columns of a stage
constexpr int kBoxBytes = kBoxRows * int{kBoxRowBytes};
constexpr int kStages = 4;
constexpr int kMostSplits = 8;
constexpr int kPitch = kTileRows + 4;  // of sums: spread over the banks
constexpr int kWord = 16;              // bytes that rows are whole multiples of
constexpr size_t kMostLinears = 3;

struct Linear {
  const bf16* bias;  // or null
  const bf16* also;  // or null
  void* y;
  int64_t n;     // features
  int shift;     // 2 to this are the blocks for a tile
  unsigned end;  // blocks of this one and those before
};

// Of rows of x that are still to be normed.
struct Norm {
  const bf16* x;
  const bf16* w;
  double eps;
  int columns;
};

struct Arguments {
  int chunks;  // of kTerms columns
  int rows;
  Norm norm;
  bool at_rest;  // the weights
  Linear linears[kMostLinears];
};

struct Maps {
  CUtensorMap x;
  CUtensorMap w[kMostLinears];
};

template <int N>
struct Stage {
  std::byte w[2][kBoxBytes];
  std::byte x[N * kBoxRowBytes];
};

/// Dynamic shared memory, from a multiple of 1024 bytes on. When the stages have been read, sums take their
/// place.
template <int N>
union Memory {
  Stage<N> stages[kStages];
  float sums[N][kPitch];
};

// What a block does with its sums: its rows of weights are next to each other, or 64 of the first half
// (gates) and those of the second that belong to them.
enum class Ends : uint8_t { linear, swiglu };
template <Ends ends>
inline constexpr int kFeatures = ends == Ends::swiglu ? kBoxRows : kTileRows;  // of a tile

#if PHALANX_SM90A

constexpr int kAhead = 4;  // stages that the L2 cache is asked for besides, at first

// A block's part of a product. One behind the last tile has no features to write.
struct Part {
  const CUtensorMap* w;
  int rows[2];  // where its boxes begin
  int begin;    // its chunks
  int end;
};

template <int N>
struct Ring {
  Stage<N>* stages;
  uint64_t* full;
  uint64_t* empty;  // the multipliers have read a stage
};

template <int N>
struct Fetcher {
  Ring<N> ring;
  const Maps& maps;
  const Part& part;

  static __device__ int stage_of(int i) { return i % kStages; }
  __device__ Coordinates box(int half, int i) const {
    return {(part.begin + i) * kTerms, part.rows[half], 0};
  }
  __device__ void announce(int i) const { barrier_expect(&ring.full[stage_of(i)], sizeof(Stage<N>)); }
  __device__ void fetch_weights(int i) const {
    const int s = stage_of(i);
    for (int half = 0; half < 2; ++half) fetch(ring.stages[s].w[half], part.w, box(half, i), &ring.full[s]);
  }
  __device__ void prefetch_weights(int i) const {
    for (int half = 0; half < 2; ++half) prefetch(part.w, box(half, i));
  }
  __device__ void fetch_x(int i) const {
    const int s = stage_of(i);
    fetch(ring.stages[s].x, &maps.x, {(part.begin + i) * kTerms, 0, 0}, &ring.full[s]);
  }
};

// One thread's work.
template <int N>
__device__ void fetch_all(const Fetcher<N>& f, bool at_rest) {
  const int count = f.part.end - f.part.begin;
  const int first = min(count, kStages);
  prefetch(&f.maps.x);
#pragma unroll 1
  for (int i = 0; i < first; ++i) {
    f.announce(i);
    at_rest ? f.fetch_weights(i) : f.prefetch_weights(i);
  }
#pragma unroll 1
  for (int i = first; i < min(count, kStages + kAhead); ++i) f.prefetch_weights(i);
  wait_for_kernel();
#pragma unroll 1
  for (int i = 0; i < first; ++i) {
    if (!at_rest) f.fetch_weights(i);
    f.fetch_x(i);
  }
#pragma unroll 1
  for (int i = kStages; i < count; ++i) {
    barrier_wait(&f.ring.empty[f.stage_of(i)], (i / kStages - 1) & 1);
    f.announce(i);
    f.fetch_weights(i);
    f.fetch_x(i);
  }
}

__device__ inline float2 widen_pair(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// 1 / the root mean square of each row, 0 of those that are not there. A warp's rows are `warp` and each 8th
// from there. Squares of 8 columns are added in f32, these sums in f64.
template <int N>
__device__ void invert_rms(float (&inv_rms)[N], const Norm& n, int rows, int warp) {
  constexpr int kInFlight = 8;
  const int lane = threadIdx.x % kWarp;
  for (int row = warp; row < N; row += kMultipliers) {
    double squares = 0;
    const int columns = row < rows ? n.columns : 0;
    for (int first = lane * 8; first < columns; first += kInFlight * kWarp * 8) {
      uint4 words[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int c = first + i * (kWarp * 8);
        words[i] = c < columns ? *reinterpret_cast<const uint4*>(n.x + int64_t{row} * columns + c) : uint4{};
      }
#pragma unroll
      for (const uint4& w : words) {
        float sum = 0;
        for (const uint32_t pair : {w.x, w.y, w.z, w.w}) {
          const float2 v = widen_pair(pair);
          sum = fmaf(v.y, v.y, fmaf(v.x, v.x, sum));
        }
        squares += static_cast<double>(sum);
      }
    }
    for (int step = kWarp / 2; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
    if (lane == 0) inv_rms[row] = row < rows ? static_cast<float>(1 / sqrt(squares / n.columns + n.eps)) : 0;
  }
  named_barrier(1, kMultiplying);
}

// The weights of the columns that a lane has in a stage, a pair; 0 behind the last.
__device__ inline uint32_t norm_weights(const Norm& n, int chunk) {
  const int column = chunk * kTerms + static_cast<int>(threadIdx.x) % kWarp * 2;
  return column < n.columns ? *reinterpret_cast<const uint32_t*>(n.w + column) : 0;
}

// A stage's rows of x, swizzled as they came, become normed. A warp's rows as above.
template <int N>
__device__ void norm_rows(std::byte* x, const float (&inv_rms)[N], uint32_t weights, int warp) {
  const int lane = threadIdx.x % kWarp;
  const float2 w = widen_pair(weights);
#pragma unroll
  for (int i = 0; i < N / kMultipliers; ++i) {
    const int row = i * kMultipliers + warp;
    const int at = row * static_cast<int>(kBoxRowBytes) + ((lane * 4) ^ (row % 8 * 16));
    auto* const pair = reinterpret_cast<uint32_t*>(x + at);
    const float2 v = widen_pair(*pair);
    const bf16 low = narrow<bf16>(v.x * inv_rms[row] * w.x);
    const bf16 high = narrow<bf16>(v.y * inv_rms[row] * w.y);
    *pair = uint32_t{low.bits} | uint32_t{high.bits} << 16;
  }
  fence_async_proxy();
  named_barrier(1, kMultiplying);
}

// A warpgroup's sums [64 rows of weights, N rows of x]; a stage's rows go through prepare(x, i) first.
template <int N, class Prepare>
__device__ void sum_chunks(float (&sums)[N / 2], const Ring<N>& ring, int count, int warpgroup,
                           Prepare&& prepare) {
  constexpr int kMma = 16;  // terms
  const uint32_t rank = cluster_rank();
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const int s = i % kStages;
    barrier_wait(&ring.full[s], i / kStages & 1);
    prepare(ring.stages[s].x, i);
    fence_sums(sums);
    warpgroup_arrive();
#pragma unroll
    for (int term = 0; term < kTerms; term += kMma) {
      const int at = term * static_cast<int>(sizeof(bf16));
      add_product_64<N>(sums, descriptor(ring.stages[s].w[warpgroup] + at),
                        descriptor(ring.stages[s].x + at));
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    fence_sums(sums);
    if (threadIdx.x % kWarp == 0) barrier_arrive(&ring.empty[s], rank);
  }
}

// To [row of x][row of weights].
template <int N>
__device__ void leave_sums(const float (&sums)[N / 2], float (&to)[N][kPitch], int warp) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    to[i / 4 * 8 + lane % 4 * 2 + i % 2][warp * 16 + lane / 4 + i / 2 % 2 * 8] = sums[i];
  }
}

// Those of the blocks that share a tile, in order: `from` is the place in each, `first` the first block.
__device__ inline float sum_of_splits(const float* from, int first, int splits) {
  float parts[kMostSplits];
#pragma unroll
  for (int s = 0; s < kMostSplits; ++s) parts[s] = s < splits ? load_from(from, first + s) : 0;
  float sum = parts[0];
#pragma unroll
  for (int s = 1; s < kMostSplits; ++s) sum += parts[s];
  return sum;
}

// A block's share of its tile's features: they begin at `feature`.
template <int N, class Y, Ends ends>
__device__ void write(const Linear& l, const float (&sums)[N][kPitch], int64_t feature, int rows) {
  const int rank = static_cast<int>(cluster_rank());
  const int splits = 1 << l.shift;
  const int first = rank & -splits;  // block of those that share the tile
  const int own = kFeatures<ends> >> l.shift;
  const int begin = (rank - first) * own;
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(rows * own); i += kMultiplying) {
    const int row = static_cast<int>(i / static_cast<unsigned>(own));
    const int column = begin + static_cast<int>(i % static_cast<unsigned>(own));
    const int64_t f = feature + column;
    if (f >= l.n) continue;
    const auto sum_of = [&](int of_tile, int64_t of_bias) {
      const float sum = sum_of_splits(&sums[row][of_tile], first, splits);
      return l.bias ? sum + widen(l.bias[of_bias]) : sum;
    };
    const int64_t at = row * l.n + f;
    const float also = l.also ? widen(l.also[at]) : 0;
    float value = sum_of(column, f);
    if constexpr (ends == Ends::swiglu) {
      value *= sum_of(kBoxRows + column, l.n + f) / (1 + expf(-value));
    }
    if (l.also) value += also;
    static_cast<Y*>(l.y)[at] = narrow<Y>(value);
  }
}

#endif

// For N rows of x or fewer.
template <int N, class Y, Ends ends, bool Norms>
__global__ void __launch_bounds__(kThreads, N <= 16 ? 3 : 2)
    multiply(const __grid_constant__ Maps maps, const __grid_constant__ Arguments a) {
#if PHALANX_SM90A
  __shared__ uint64_t full[kStages];
  __shared__ uint64_t empty[kStages];
  extern __shared__ std::byte dynamic[];
  auto& memory = *reinterpret_cast<Memory<N>*>(dynamic + (1024 - shared_address(dynamic) % 1024) % 1024);
  let_next_start();
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarp, 0);
  int number = 0;
  while (blockIdx.x >= a.linears[number].end) ++number;
  const Linear& l = a.linears[number];
  const int block = static_cast<int>(blockIdx.x - (number > 0 ? a.linears[number - 1].end : 0));
  const int split = block & ((1 << l.shift) - 1);
  const int64_t feature = int64_t{block >> l.shift} * kFeatures<ends>;
  const int64_t second = feature + (ends == Ends::swiglu ? l.n : kBoxRows);
  const Part part = {.w = &maps.w[number],
                     .rows = {static_cast<int>(feature), static_cast<int>(second)},
                     .begin = (a.chunks * split) >> l.shift,
                     .end = (a.chunks * (split + 1)) >> l.shift};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kMultipliers);
    }
    barrier_init_fence();
    fence_async_proxy();
  }
  __syncthreads();
  const Ring<N> ring = {memory.stages, full, empty};
  if (warp == kMultipliers) {
    if (threadIdx.x == kMultiplying) fetch_all<N>({ring, maps, part}, a.at_rest);
    __syncwarp();
  } else {
    wait_for_kernel();
    float sums[N / 2] = {};
    const int count = part.end - part.begin;
    const int warpgroup = warp / (kWarpgroup / kWarp);
    if constexpr (Norms) {
      __shared__ float inv_rms[N];
      invert_rms<N>(inv_rms, a.norm, a.rows, warp);
      uint32_t weights = norm_weights(a.norm, part.begin);
      sum_chunks<N>(sums, ring, count, warpgroup, [&](std::byte* x, int i) {
        norm_rows<N>(x, inv_rms, weights, warp);
        weights = norm_weights(a.norm, part.begin + i + 1);
      });
    } else {
      sum_chunks<N>(sums, ring, count, warpgroup, [](std::byte*, int) {});
    }
    named_barrier(1, kMultiplying);  // the stages have been read
    leave_sums<N>(sums, memory.sums, warp);
  }
  cluster_sync();
  if (warp < kMultipliers) write<N, Y, ends>(l, memory.sums, feature, a.rows);
  cluster_meet();  // other blocks may still read what this one has
#endif
}

bool whole_words(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % kWord == 0; }

bool fits(const Tensor& x, std::span<const LinearOf> linears, const RowNorm& norm) {
  if (norm.w_K.defined()) {
    if (x.rows() > kFewNormedRows || norm.w_K.dtype() != DType::bf16 || !whole_words(norm.w_K)) return false;
  }
  if (x.dtype() != DType::bf16 || x.rows() == 0 || x.rows() > kFewRows) return false;
  if (x.dim(1) == 0 || x.dim(1) * int64_t{sizeof(bf16)} % kWord != 0 || !whole_words(x)) return false;
  if (linears.empty() || linears.size() > kMostLinears) return false;
  const DType dtype = linears[0].y_MN.dtype();
  for (const LinearOf& l : linears) {
    if (l.w_NK.dtype() != DType::bf16 || l.w_NK.rows() == 0 || !whole_words(l.w_NK)) return false;
    if (l.y_MN.dtype() != dtype || (dtype != DType::bf16 && dtype != DType::f32)) return false;
    if (l.b_N.defined() && l.b_N.dtype() != DType::bf16) return false;
    if (l.also_MN.defined() && l.also_MN.dtype() != DType::bf16) return false;
  }
  return true;
}

// Whether the kernel has a body here: without one it has no shared memory. All GPUs of a process are alike.
bool has_kernel() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, multiply<8, bf16, Ends::linear, false>),
          "cudaFuncGetAttributes");
    return attributes.sharedSizeBytes > 0;
  }();
  return has;
}

// Blocks for a tile, as a power of 2: so many that each processor has one or two, and a ring is filled at
// least.
int shift_for(int64_t tiles, int64_t chunks) {
  constexpr int64_t kBlocks = 2 * 132;
  int shift = std::countr_zero(unsigned{kMostSplits});
  while (shift > 0 && (tiles << shift > kBlocks || chunks < int64_t{kStages} << shift)) --shift;
  return shift;
}

// A launch as it is put together.
struct Launch {
  Maps maps;
  Arguments arguments;
  unsigned cluster = 1;
};

template <Ends ends>
Launch launch_of(const Tensor& x, std::span<const LinearOf> linears, const RowNorm& norm, int box_rows) {
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.device_data<bf16>() : nullptr; };
  Launch launch = {.maps = {.x = tensor_map(x, box_rows), .w = {}},
                   .arguments = {.chunks = static_cast<int>((x.dim(1) + kTerms - 1) / kTerms),
                                 .rows = static_cast<int>(x.rows()),
                                 .norm = {.x = pointer(x),
                                          .w = pointer(norm.w_K),
                                          .eps = norm.eps,
                                          .columns = static_cast<int>(x.dim(1))},
                                 .at_rest = AtRest::on(),
                                 .linears = {}}};
  Arguments& a = launch.arguments;
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOf& l = linears[i];
    launch.maps.w[i] = tensor_map(l.w_NK, kBoxRows);
    a.linears[i] = {.bias = pointer(l.b_N),
                    .also = pointer(l.also_MN),
                    .y = l.y_MN.address(),
                    .n = l.y_MN.dim(1),
                    .shift = shift_for(blocks_for(l.y_MN.dim(1), kFeatures<ends>), a.chunks),
                    .end = 0};
    launch.cluster = std::max(launch.cluster, 1U << a.linears[i].shift);
  }
  unsigned blocks = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    Linear& l = a.linears[i];
    const unsigned used = blocks_for(l.n, kFeatures<ends>) << l.shift;
    blocks += blocks_for(used, launch.cluster) * launch.cluster;
    l.end = blocks;
  }
  return launch;
}

template <int N, class Y, Ends ends, bool Norms>
void start(const Tensor& x, std::span<const LinearOf> linears, const RowNorm& norm) {
  const Launch l = launch_of<ends>(x, linears, norm, N);
  constexpr size_t kBytes = sizeof(Memory<N>) + 1024;
  constexpr auto* kKernel = multiply<N, Y, ends, Norms>;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{kBytes}),
        "cudaFuncSetAttribute");
  const Grid grid = {.blocks = dim3(l.arguments.linears[linears.size() - 1].end),
                     .threads = dim3(kThreads),
                     .cluster = l.cluster,
                     .shared_bytes = kBytes};
  launch_early("a product of few rows", kKernel, grid, l.maps, l.arguments);
}

template <class Y, Ends ends>
void start_for_rows(const Tensor& x, std::span<const LinearOf> linears, const RowNorm& norm) {
  const int64_t rows = x.rows();
  if (norm.w_K.defined()) {
    static_assert(kFewNormedRows == 16);
    if (rows <= 8) return start<8, Y, ends, true>(x, linears, norm);
    return start<16, Y, ends, true>(x, linears, norm);
  }
  if (rows <= 8) return start<8, Y, ends, false>(x, linears, norm);
  if (rows <= 16) return start<16, Y, ends, false>(x, linears, norm);
  if (rows <= 32) return start<32, Y, ends, false>(x, linears, norm);
  start<64, Y, ends, false>(x, linears, norm);
}

void check_norm(const Tensor& x, const RowNorm& norm) {
  PHX_CHECK(!norm.w_K.defined() || norm.w_K.numel() == x.dim(1), "a norm with {} of {}", norm.w_K.shape(),
            x.shape());
}

}  // namespace

bool multiply_few_rows(const Tensor& x, std::span<const LinearOf> linears, const RowNorm& norm) {
  if (!fits(x, linears, norm) || !has_kernel()) return false;
  check_norm(x, norm);
  for (const LinearOf& l : linears) {
    PHX_CHECK(l.w_NK.dim(1) == x.dim(1) && l.y_MN.shape() == Shape({x.rows(), l.w_NK.rows()}),
              "a linear layer {} of {} into {}", l.w_NK.shape(), x.shape(), l.y_MN.shape());
  }
  if (linears[0].y_MN.dtype() == DType::f32) {
    start_for_rows<float, Ends::linear>(x, linears, norm);
  } else {
    start_for_rows<bf16, Ends::linear>(x, linears, norm);
  }
  return true;
}

bool multiply_few_rows_swiglu(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& b,
                              const RowNorm& norm) {
  const LinearOf linear = {y, w, b, {}};
  if (!fits(x, {&linear, 1}, norm) || y.dtype() != DType::bf16 || y.numel() == 0 || !has_kernel()) {
    return false;
  }
  check_norm(x, norm);
  PHX_CHECK(w.dim(1) == x.dim(1) && 2 * y.dim(1) == w.rows() && y.rows() == x.rows(),
            "a SwiGLU of {} of {} into {}", w.shape(), x.shape(), y.shape());
  start_for_rows<bf16, Ends::swiglu>(x, {&linear, 1}, norm);
  return true;
}

}  // namespace phalanx::cuda
