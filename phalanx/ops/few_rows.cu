// Weights stream by: a block has a tile of 128 rows of a weight matrix and some of the columns, and fetches
// them 64 at a time, 16 KiB, into a ring that is all under way when it starts. Rows of x are what wgmma calls
// columns, so that 64 of them cost no more memory than one. Where matrices are short, the blocks of a
// cluster share a tile's columns; their sums meet in shared memory, in order. The first weights are fetched,
// or if others may still write them are on their way to the L2 cache, before the kernel in front has ended.
#include "phalanx/ops/few_rows.h"

#include <algorithm>

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
constexpr int kAhead = 4;  // stages that the L2 cache is asked for besides, at first
constexpr int kMostSplits = 8;
constexpr int kPitch = kTileRows + 4;  // of sums: spread over the banks
constexpr int kWord = 16;              // bytes that rows are whole multiples of
constexpr size_t kMostLinears = 3;

struct Linear {
  const bf16* bias;  // or null
  const bf16* also;  // or null
  void* y;
  int64_t n;     // features
  int splits;    // blocks for a tile
  unsigned end;  // blocks of this one and those before
};

struct Arguments {
  int chunks;  // of kTerms columns
  int rows;
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

// A block's part of a product. One behind the last tile has no features to write.
struct Part {
  const CUtensorMap* w;
  int rows[2];  // where its boxes begin
  int begin;    // its chunks
  int end;
};

template <int N>
struct Fetcher {
  Stage<N>* stages;
  uint64_t* full;
  const Maps& maps;
  const Part& part;

  static __device__ int stage_of(int i) { return i % kStages; }
  __device__ Coordinates box(int half, int i) const {
    return {(part.begin + i) * kTerms, part.rows[half], 0};
  }
  __device__ void announce(int i) const { barrier_expect(&full[stage_of(i)], sizeof(Stage<N>)); }
  __device__ void fetch_weights(int i) const {
    const int s = stage_of(i);
    for (int half = 0; half < 2; ++half) fetch(stages[s].w[half], part.w, box(half, i), &full[s]);
  }
  __device__ void prefetch_weights(int i) const {
    for (int half = 0; half < 2; ++half) prefetch(part.w, box(half, i));
  }
  __device__ void fetch_x(int i) const {
    const int s = stage_of(i);
    fetch(stages[s].x, &maps.x, {(part.begin + i) * kTerms, 0, 0}, &full[s]);
  }
};

// One thread's work. `empty`: the multipliers have read a stage.
template <int N>
__device__ void fetch_all(const Fetcher<N>& f, uint64_t* empty, bool at_rest) {
  const int count = f.part.end - f.part.begin;
  const int first = min(count, kStages);
  prefetch(&f.maps.x);
  for (int i = 0; i < first; ++i) {
    f.announce(i);
    at_rest ? f.fetch_weights(i) : f.prefetch_weights(i);
  }
  for (int i = first; i < min(count, kStages + kAhead); ++i) f.prefetch_weights(i);
  wait_for_kernel();
  for (int i = 0; i < first; ++i) {
    if (!at_rest) f.fetch_weights(i);
    f.fetch_x(i);
  }
  for (int i = kStages; i < count; ++i) {
    barrier_wait(&empty[f.stage_of(i)], (i / kStages - 1) & 1);
    f.announce(i);
    f.fetch_weights(i);
    f.fetch_x(i);
  }
}

// A warpgroup's sums [64 rows of weights, N rows of x].
template <int N>
__device__ void sum_chunks(float (&sums)[N / 2], Stage<N>* stages, uint64_t* full, uint64_t* empty, int count,
                           int warpgroup) {
  constexpr int kMma = 16;  // terms
  const uint32_t rank = cluster_rank();
  for (int i = 0; i < count; ++i) {
    const int s = i % kStages;
    barrier_wait(&full[s], i / kStages & 1);
    fence_sums(sums);
    warpgroup_arrive();
#pragma unroll
    for (int term = 0; term < kTerms; term += kMma) {
      const int at = term * static_cast<int>(sizeof(bf16));
      add_product_64<N>(sums, descriptor(stages[s].w[warpgroup] + at), descriptor(stages[s].x + at));
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    fence_sums(sums);
    if (threadIdx.x % kWarp == 0) barrier_arrive(&empty[s], rank);
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
  const int first = rank / l.splits * l.splits;  // block of those that share the tile
  const int own = kFeatures<ends> / l.splits;
  const int begin = (rank - first) * own;
  for (int i = threadIdx.x; i < rows * own; i += kMultiplying) {
    const int row = i / own;
    const int column = begin + i % own;
    const int64_t f = feature + column;
    if (f >= l.n) continue;
    const auto sum_of = [&](int of_tile, int64_t of_bias) {
      const float sum = sum_of_splits(&sums[row][of_tile], first, l.splits);
      return l.bias ? sum + widen(l.bias[of_bias]) : sum;
    };
    const int64_t at = row * l.n + f;
    float value = sum_of(column, f);
    if constexpr (ends == Ends::swiglu) {
      value *= sum_of(kBoxRows + column, l.n + f) / (1 + expf(-value));
    }
    if (l.also) value += widen(l.also[at]);
    static_cast<Y*>(l.y)[at] = narrow<Y>(value);
  }
}

#endif

// For N rows of x or fewer.
template <int N, class Y, Ends ends>
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
  const int split = block % l.splits;
  const int64_t feature = int64_t{block / l.splits} * kFeatures<ends>;
  const int64_t second = feature + (ends == Ends::swiglu ? l.n : kBoxRows);
  const Part part = {.w = &maps.w[number],
                     .rows = {static_cast<int>(feature), static_cast<int>(second)},
                     .begin = a.chunks * split / l.splits,
                     .end = a.chunks * (split + 1) / l.splits};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kMultipliers);
    }
    barrier_init_fence();
    fence_async_proxy();
  }
  __syncthreads();
  if (warp == kMultipliers) {
    if (threadIdx.x == kMultiplying) fetch_all<N>({memory.stages, full, maps, part}, empty, a.at_rest);
    __syncwarp();
  } else {
    wait_for_kernel();
    float sums[N / 2] = {};
    sum_chunks<N>(sums, memory.stages, full, empty, part.end - part.begin, warp / (kWarpgroup / kWarp));
    named_barrier(1, kMultiplying);  // the stages have been read
    leave_sums<N>(sums, memory.sums, warp);
  }
  cluster_sync();
  if (warp < kMultipliers) write<N, Y, ends>(l, memory.sums, feature, a.rows);
  cluster_sync();  // other blocks may still read what this one has
#endif
}

bool whole_words(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % kWord == 0; }

bool fits(const Tensor& x, std::span<const LinearOf> linears) {
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
    check(cudaFuncGetAttributes(&attributes, multiply<8, bf16, Ends::linear>), "cudaFuncGetAttributes");
    return attributes.sharedSizeBytes > 0;
  }();
  return has;
}

// Blocks for a tile: so many that each processor has one or two, and a ring is filled at least.
int splits_for(int64_t tiles, int64_t chunks) {
  constexpr int64_t kBlocks = 2 * 132;
  int splits = kMostSplits;
  while (splits > 1 && (tiles * splits > kBlocks || chunks < int64_t{kStages} * splits)) splits /= 2;
  return splits;
}

// A launch as it is put together.
struct Launch {
  Maps maps;
  Arguments arguments;
  unsigned cluster = 1;
};

template <Ends ends>
Launch launch_of(const Tensor& x, std::span<const LinearOf> linears, int box_rows) {
  Launch launch = {.maps = {.x = tensor_map(x, box_rows), .w = {}},
                   .arguments = {.chunks = static_cast<int>((x.dim(1) + kTerms - 1) / kTerms),
                                 .rows = static_cast<int>(x.rows()),
                                 .at_rest = AtRest::on(),
                                 .linears = {}}};
  Arguments& a = launch.arguments;
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.device_data<bf16>() : nullptr; };
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOf& l = linears[i];
    launch.maps.w[i] = tensor_map(l.w_NK, kBoxRows);
    a.linears[i] = {.bias = pointer(l.b_N),
                    .also = pointer(l.also_MN),
                    .y = l.y_MN.address(),
                    .n = l.y_MN.dim(1),
                    .splits = splits_for(blocks_for(l.y_MN.dim(1), kFeatures<ends>), a.chunks),
                    .end = 0};
    launch.cluster = std::max(launch.cluster, static_cast<unsigned>(a.linears[i].splits));
  }
  unsigned blocks = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    Linear& l = a.linears[i];
    const unsigned used = blocks_for(l.n, kFeatures<ends>) * static_cast<unsigned>(l.splits);
    blocks += blocks_for(used, launch.cluster) * launch.cluster;
    l.end = blocks;
  }
  return launch;
}

template <int N, class Y, Ends ends>
void start(const Tensor& x, std::span<const LinearOf> linears) {
  const Launch l = launch_of<ends>(x, linears, N);
  constexpr size_t kBytes = sizeof(Memory<N>) + 1024;
  check(cudaFuncSetAttribute(multiply<N, Y, ends>, cudaFuncAttributeMaxDynamicSharedMemorySize, int{kBytes}),
        "cudaFuncSetAttribute");
  const Grid grid = {.blocks = dim3(l.arguments.linears[linears.size() - 1].end),
                     .threads = dim3(kThreads),
                     .cluster = l.cluster,
                     .shared_bytes = kBytes};
  launch_early("a product of few rows", multiply<N, Y, ends>, grid, l.maps, l.arguments);
}

template <class Y, Ends ends>
void start_for_rows(const Tensor& x, std::span<const LinearOf> linears) {
  const int64_t rows = x.rows();
  if (rows <= 8) return start<8, Y, ends>(x, linears);
  if (rows <= 16) return start<16, Y, ends>(x, linears);
  if (rows <= 32) return start<32, Y, ends>(x, linears);
  start<64, Y, ends>(x, linears);
}

}  // namespace

bool multiply_few_rows(const Tensor& x, std::span<const LinearOf> linears) {
  if (!fits(x, linears) || !has_kernel()) return false;
  for (const LinearOf& l : linears) {
    PHX_CHECK(l.w_NK.dim(1) == x.dim(1) && l.y_MN.shape() == Shape({x.rows(), l.w_NK.rows()}),
              "a linear layer {} of {} into {}", l.w_NK.shape(), x.shape(), l.y_MN.shape());
  }
  if (linears[0].y_MN.dtype() == DType::f32) {
    start_for_rows<float, Ends::linear>(x, linears);
  } else {
    start_for_rows<bf16, Ends::linear>(x, linears);
  }
  return true;
}

bool multiply_few_rows_swiglu(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& b) {
  const LinearOf linear = {y, w, b, {}};
  if (!fits(x, {&linear, 1}) || y.dtype() != DType::bf16 || y.numel() == 0 || !has_kernel()) return false;
  PHX_CHECK(w.dim(1) == x.dim(1) && 2 * y.dim(1) == w.rows() && y.rows() == x.rows(),
            "a SwiGLU of {} of {} into {}", w.shape(), x.shape(), y.shape());
  start_for_rows<bf16, Ends::swiglu>(x, {&linear, 1});
  return true;
}

}  // namespace phalanx::cuda
