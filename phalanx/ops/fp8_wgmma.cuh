// The kernel of FP8 products for sm_90a. Blocks stay, one a multiprocessor, and work in pairs through tiles
// of the result that lie beside one another: they have a's rows in common, and each fetches half of them for
// both. Of each block's three warpgroups the first fetches stages of 128 terms, a group, into a ring. The
// others have half of the tile's rows each, 64 or twice 64 (Waves). The tensor cores sum 64 rows over one
// group, these sums are scaled and added in f32 while the other warpgroup's are made.
#pragma once

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/fp8_wgmma.h"
#include "phalanx/ops/hopper.cuh"
#include "phalanx/ops/tensor_map.cuh"

namespace phalanx::cuda {

inline constexpr int kFp8Terms = static_cast<int>(kScaleGroup);  // of a stage: 128 bytes
inline constexpr int kFp8Columns = 128;                          // of a tile
inline constexpr int kWaveRows = 64;
inline constexpr int kMultipliers = 8;  // warps that multiply
inline constexpr int kWarpsOfGroup = kWarpgroup / kWarp;
inline constexpr int kFp8Threads = kWarpgroup + kMultipliers * kWarp;
inline constexpr int kFp8BBytes = kFp8Columns * kFp8Terms;

/// A warp stages 16 rows of bf16, half of the tile's columns at a time, to store them in whole lines. The
/// pitch, in bytes, spreads rows over the banks.
inline constexpr int kStagedColumns = 64;
inline constexpr int kStagedRows = 16;
inline constexpr int kStagedPitch = kStagedColumns * int{sizeof(bf16)} + 16;

template <int Waves>
inline constexpr int kFp8Rows = 2 * Waves* kWaveRows;
template <int Waves>
inline constexpr int kFp8Stages = Waves == 2 ? 4 : 6;

/// Dynamic shared memory, from a multiple of 1024 bytes on.
template <int Waves>
struct Fp8Stages {
  alignas(1024) std::byte a[kFp8Stages<Waves>][kFp8Rows<Waves> * kFp8Terms];
  std::byte b[kFp8Stages<Waves>][kFp8BBytes];
  alignas(128) float scales_a[kFp8Stages<Waves>][kFp8Rows<Waves>];
  float scales_b[kFp8Stages<Waves>][kFp8Columns];  // of lines
  std::byte staged[kMultipliers][kStagedRows * kStagedPitch];
};

template <int Waves>
struct Fp8Barriers {
  uint64_t full[kFp8Stages<Waves>];
  uint64_t empty[kFp8Stages<Waves>];
};

struct Fp8Maps {
  CUtensorMap a;
  CUtensorMap b;
  CUtensorMap scales_a;
  CUtensorMap scales_b;  // of lines
};

struct Fp8Sizes {
  int m;
  int n;
  int groups;             // of terms
  const float* scales_b;  // of blocks [⌈n / 128⌉, groups]
  bool add;
  bool pairs;  // two neighbouring results are one access
  bool whole;  // eight results of bf16 are one access
};

/// Where a tile begins. Behind the last column there may be one more, to make up a pair.
struct Fp8Tile {
  int row;
  int column;
};

/// Tiles down and pairs across.
template <int Waves>
struct Fp8Grid {
  int down;
  int across;

  __host__ __device__ Fp8Grid(int m, int n)
      : down((m + kFp8Rows<Waves> - 1) / kFp8Rows<Waves>),
        across((n + 2 * kFp8Columns - 1) / (2 * kFp8Columns)) {}
  __host__ __device__ int pairs() const { return down * across; }
};

#if PHALANX_SM90A

/// f(tile) for each tile of this block, in the order of all its roles: down bands of 2048 rows, so that
/// blocks that work at the same time read few rows of both factors.
template <int Waves, class Each>
__device__ void for_each_tile(const Fp8Sizes& s, Each&& f) {
  constexpr int kBand = 2048 / kFp8Rows<Waves>;
  const Fp8Grid<Waves> grid(s.m, s.n);
  const int rank = static_cast<int>(cluster_rank());
  for (int pair = static_cast<int>(blockIdx.x) / 2; pair < grid.pairs();
       pair += static_cast<int>(gridDim.x) / 2) {
    const int band = pair / (kBand * grid.across);
    const int height = min(kBand, grid.down - band * kBand);
    const int in_band = pair - band * kBand * grid.across;
    const int column = in_band / height;
    const int row = band * kBand + in_band - column * height;
    f(Fp8Tile{row * kFp8Rows<Waves>, (2 * column + rank) * kFp8Columns});
  }
}

template <int Waves>
struct Fp8Ring {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage < kFp8Stages<Waves>) return;
    stage = 0;
    parity ^= 1;
  }
};

/// One thread: all stages of all tiles.
template <bool Lines, int Waves>
__device__ void fetch_tiles(const Fp8Maps& maps, const Fp8Sizes& s, Fp8Stages<Waves>& stages,
                            Fp8Barriers<Waves>& barriers) {
  constexpr int kHalf = kFp8Rows<Waves> / 2;
  constexpr uint32_t kBytes = sizeof(stages.a[0]) + sizeof(stages.b[0]) + sizeof(stages.scales_a[0]) +
                              (Lines ? sizeof(stages.scales_b[0]) : 0);
  const int half = static_cast<int>(cluster_rank()) * kHalf;
  Fp8Ring<Waves> ring;
  for_each_tile<Waves>(s, [&](const Fp8Tile& t) {
#pragma unroll 1
    for (int g = 0; g < s.groups; ++g) {
      const int at = ring.stage;
      uint64_t* const full = &barriers.full[at];
      barrier_wait(&barriers.empty[at], ring.parity ^ 1);
      barrier_expect(full, kBytes);
      fetch_for_both(stages.a[at] + half * kFp8Terms, &maps.a, {g * kFp8Terms, t.row + half, 0}, full);
      fetch_for_both(stages.scales_a[at] + half, &maps.scales_a, {t.row + half, g, 0}, full);
      fetch(stages.b[at], &maps.b, {g * kFp8Terms, t.column, 0}, full);
      if constexpr (Lines) fetch(stages.scales_b[at], &maps.scales_b, {t.column, g, 0}, full);
      ring.advance();
    }
  });
}

/// What the multipliers' roles need.
template <int Waves>
struct Fp8Multiplier {
  Fp8Stages<Waves>& stages;
  Fp8Barriers<Waves>& barriers;
  int warp;  // 0 … kMultipliers − 1, uniform for the compiler too, which must not see wgmma diverge
  Fp8Ring<Waves> ring;

  /// Of the tile, this warpgroup's first row.
  __device__ int group_row() const { return warp / kWarpsOfGroup * Waves * kWaveRows; }
  /// This warp's first row of a wave.
  __device__ int row(int wave) const {
    return group_row() + wave * kWaveRows + warp % kWarpsOfGroup * kStagedRows;
  }
  __device__ void await() const { barrier_wait(&barriers.full[ring.stage], ring.parity); }
  /// The stage has been read; on to the next.
  __device__ void release() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    __syncwarp();
    if (lane < 2) barrier_arrive(&barriers.empty[ring.stage], lane);
    ring.advance();
  }
};

/// sums = 64 rows of a times b's rows, over a stage's terms, when this has been waited for.
__device__ inline void multiply_group(float (&sums)[64], const std::byte* a, const std::byte* b) {
  constexpr int kMma = 32;  // terms, and bytes
  fence_sums(sums);
  warpgroup_arrive();
#pragma unroll
  for (int i = 0; i < kFp8Terms / kMma; ++i)
    multiply_64x128(sums, descriptor(a + i * kMma), descriptor(b + i * kMma), i > 0);
  warpgroup_commit_batch();
}

/// total += sums · (scale of its row · scale of its column): one for all columns, or each its own.
__device__ inline void promote(float (&total)[64], const float (&sums)[64], const float (&of_rows)[2],
                               float of_block) {
  const float scales[] = {of_rows[0] * of_block, of_rows[1] * of_block};
#pragma unroll
  for (int i = 0; i < 64; ++i) total[i] = __fmaf_rn(sums[i], scales[i / 2 % 2], total[i]);
}

__device__ inline void promote(float (&total)[64], const float (&sums)[64], const float (&of_rows)[2],
                               const float* of_columns) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < kFp8Columns / 8; ++j) {
    const float2 of_pair = *reinterpret_cast<const float2*>(of_columns + j * 8 + lane % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float scale = of_rows[i / 2] * (i % 2 == 0 ? of_pair.x : of_pair.y);
      total[4 * j + i] = __fmaf_rn(sums[4 * j + i], scale, total[4 * j + i]);
    }
  }
}

/// A tile's sums. Of a thread, total[w] lies in wave w as sums of multiply_64x128.
template <bool Lines, int Waves>
__device__ void sum_tile(float (&total)[Waves][64], const Fp8Tile& t, const Fp8Sizes& s,
                         Fp8Multiplier<Waves>& m) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float* const of_blocks = s.scales_b + int64_t{t.column / kFp8Columns} * s.groups;
  float next = Lines ? 0 : __ldg(of_blocks);
#pragma unroll
  for (int w = 0; w < Waves; ++w) {
#pragma unroll
    for (float& sum : total[w]) sum = 0;
  }
#pragma unroll 1
  for (int g = 0; g < s.groups; ++g) {
    const float of_block = next;
    if (!Lines && g + 1 < s.groups) next = __ldg(of_blocks + g + 1);
    m.await();
    const std::byte* const a = m.stages.a[m.ring.stage] + m.group_row() * kFp8Terms;
    const std::byte* const b = m.stages.b[m.ring.stage];
    const float* const scales_a = m.stages.scales_a[m.ring.stage] + lane / 4;
    const float* const scales_b = m.stages.scales_b[m.ring.stage];
#pragma unroll
    for (int w = 0; w < Waves; ++w) {
      float sums[64];
      multiply_group(sums, a + w * kWaveRows * kFp8Terms, b);
      const float of_rows[] = {scales_a[m.row(w)], scales_a[m.row(w) + 8]};
      warpgroup_wait<0>();
      fence_sums(sums);
      if constexpr (Lines) {
        promote(total[w], sums, of_rows, scales_b);
        if (w == Waves - 1) m.release();
      } else {
        if (w == Waves - 1) m.release();
        promote(total[w], sums, of_rows, of_block);
      }
    }
  }
}

/// The same for a warpgroup whose rows, or columns, are not there.
template <int Waves>
__device__ void pass_tile(const Fp8Sizes& s, Fp8Multiplier<Waves>& m) {
#pragma unroll 1
  for (int g = 0; g < s.groups; ++g) {
    m.await();
    m.release();
  }
}

/// f(i, row, column) for each pair sums[i], sums[i + 1] of a warp's 16 rows that has a place.
template <class F>
__device__ void for_each_pair(int rows, int columns, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 64; i += 2) {
    const int row = lane / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + lane % 4 * 2;
    if (row < rows && column < columns) f(i, row, column);
  }
}

/// sums += what lies at `from`, rows at a distance of s.n.
template <class Out>
__device__ void add_rows(float (&sums)[64], const Out* from, int rows, int columns, const Fp8Sizes& s) {
  for_each_pair(rows, columns, [&](int i, int row, int column) {
    const Out* const at = from + int64_t{row} * s.n + column;
    if (s.pairs) {
      const auto pair = load<Out, 2>(at);
      sums[i] += widen(pair.v[0]);
      sums[i + 1] += widen(pair.v[1]);
    } else {
      sums[i] += widen(at[0]);
      if (column + 1 < columns) sums[i + 1] += widen(at[1]);
    }
  });
}

/// Of f32: the four lanes of a row store 32 bytes of it.
__device__ inline void store_rows(const float (&sums)[64], float* to, int rows, int columns,
                                  const Fp8Sizes& s, std::byte*) {
  for_each_pair(rows, columns, [&](int i, int row, int column) {
    float* const at = to + int64_t{row} * s.n + column;
    if (s.pairs) {
      *reinterpret_cast<float2*>(at) = {sums[i], sums[i + 1]};
    } else {
      at[0] = sums[i];
      if (column + 1 < columns) at[1] = sums[i + 1];
    }
  });
}

__device__ inline uint32_t narrow_pair(float low, float high) {
  return uint32_t{narrow<bf16>(low).bits} | uint32_t{narrow<bf16>(high).bits} << 16;
}

/// Staged rows to global memory: eight lanes have 128 bytes of one.
__device__ inline void send_rows(const std::byte* staged, bf16* to, int rows, int columns,
                                 const Fp8Sizes& s) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < kStagedRows / 4; ++i) {
    const int row = i * 4 + lane / 8;
    const int column = lane % 8 * 8;
    if (row >= rows || column >= columns) continue;
    const auto eight = load<bf16, 8>(reinterpret_cast<const bf16*>(staged + row * kStagedPitch) + column);
    bf16* const at = to + int64_t{row} * s.n + column;
    if (s.whole) {
      store(at, eight);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (column + j < columns) at[j] = eight.v[j];
      }
    }
  }
}

/// Of bf16, half of the columns after the other.
__device__ inline void store_rows(const float (&sums)[64], bf16* to, int rows, int columns, const Fp8Sizes& s,
                                  std::byte* staged) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::byte* const at = staged + lane % 16 * kStagedPitch + lane / 16 * 16;
#pragma unroll
  for (int part = 0; part < kFp8Columns / kStagedColumns; ++part) {
    __syncwarp();  // what was staged before has been read
#pragma unroll
    for (int j = 0; j < kStagedColumns / 16; ++j) {
      const float* const v = sums + part * (kStagedColumns / 2) + 8 * j;
      const uint32_t m[] = {narrow_pair(v[0], v[1]), narrow_pair(v[2], v[3]), narrow_pair(v[4], v[5]),
                            narrow_pair(v[6], v[7])};
      store_matrices(at + j * 32, m);
    }
    __syncwarp();
    const int first = part * kStagedColumns;
    send_rows(staged, to + first, rows, min(columns - first, kStagedColumns), s);
  }
}

/// The warp's rows of a tile, to where they belong.
template <class Out, int Waves>
__device__ void store_tile(float (&total)[Waves][64], const Fp8Tile& t, const Fp8Sizes& s,
                           const Fp8Multiplier<Waves>& m, Out* y) {
#pragma unroll
  for (int w = 0; w < Waves; ++w) {
    const int row = t.row + m.row(w);
    const int rows = min(s.m - row, kStagedRows);
    const int columns = min(s.n - t.column, kFp8Columns);
    Out* const to = y + int64_t{row} * s.n + t.column;
    if (s.add) add_rows(total[w], to, rows, columns, s);
    store_rows(total[w], to, rows, columns, s, m.stages.staged[m.warp]);
  }
}

#endif

template <bool Lines, int Waves, class Out>
__global__ __launch_bounds__(kFp8Threads, 1) void fp8_wgmma(const __grid_constant__ Fp8Maps maps,
                                                            Fp8Sizes sizes, Out* y) {
#if PHALANX_SM90A
  __shared__ Fp8Barriers<Waves> barriers;
  extern __shared__ std::byte dynamic[];
  auto& stages =
      *reinterpret_cast<Fp8Stages<Waves>*>(dynamic + (1024 - shared_address(dynamic) % 1024) % 1024);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kFp8Stages<Waves>; ++i) {
      barrier_init(&barriers.full[i], 1);
      barrier_init(&barriers.empty[i], 2 * kMultipliers);
    }
    barrier_init_fence();
  }
  cluster_sync();
  if (warp < kWarpsOfGroup) {
    leave_registers<40>();
    if (threadIdx.x == 0) fetch_tiles<Lines>(maps, sizes, stages, barriers);
    __syncwarp();
  } else {
    take_registers<232>();
    Fp8Multiplier<Waves> m = {
        .stages = stages, .barriers = barriers, .warp = warp - kWarpsOfGroup, .ring = {}};
    for_each_tile<Waves>(sizes, [&](const Fp8Tile& t) {
      if (t.row + m.group_row() >= sizes.m || t.column >= sizes.n) return pass_tile(sizes, m);
      float total[Waves][64];
      sum_tile<Lines>(total, t, sizes, m);
      store_tile(total, t, sizes, m, y);
    });
  }
  cluster_sync();  // the other block may still arrive at this one's barriers
#endif
}

/// Whether the kernel has a body here: without one it has no shared memory. All GPUs of a process are alike.
template <bool Lines, int Waves, class Out>
bool has_fp8_wgmma() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, fp8_wgmma<Lines, Waves, Out>), "cudaFuncGetAttributes");
    return attributes.sharedSizeBytes > 0;
  }();
  return has;
}

template <bool Lines, int Waves, class Out>
bool launch_fp8_wgmma(const Fp8Product& p, int multiprocessors) {
  if (!has_fp8_wgmma<Lines, Waves, Out>()) return false;
  constexpr int kRows = kFp8Rows<Waves>;
  const CUtensorMap scales_a = tensor_map_of_rows(p.a.scales_SR, kRows / 2);
  const Fp8Maps maps = {.a = tensor_map(p.a.q_RK, kRows / 2),
                        .b = tensor_map(p.b, kFp8Columns),
                        .scales_a = scales_a,
                        .scales_b = Lines ? tensor_map_of_rows(p.scales_b, kFp8Columns) : scales_a};
  const auto at = reinterpret_cast<uintptr_t>(p.y.address());
  const Fp8Sizes sizes = {.m = static_cast<int>(p.y.dim(0)),
                          .n = static_cast<int>(p.y.dim(1)),
                          .groups = static_cast<int>(p.a.scales_SR.dim(0)),
                          .scales_b = p.scales_b.device_data<const float>(),
                          .add = p.into == Into::add,
                          .pairs = p.y.dim(1) % 2 == 0 && at % (2 * sizeof(Out)) == 0,
                          .whole = p.y.dim(1) % 8 == 0 && at % 16 == 0};
  const size_t bytes = sizeof(Fp8Stages<Waves>) + 1024;
  check(cudaFuncSetAttribute(fp8_wgmma<Lines, Waves, Out>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  cudaLaunchAttribute pairs;
  pairs.id = cudaLaunchAttributeClusterDimension;
  pairs.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(
      static_cast<unsigned>(2 * std::min(multiprocessors / 2, Fp8Grid<Waves>(sizes.m, sizes.n).pairs())));
  launch.blockDim = dim3(kFp8Threads);
  launch.dynamicSmemBytes = bytes;
  launch.stream = current_stream().native();
  launch.attrs = &pairs;
  launch.numAttrs = 1;
  check(cudaLaunchKernelEx(&launch, fp8_wgmma<Lines, Waves, Out>, maps, sizes, p.y.device_data<Out>()),
        "fp8_wgmma");
  return true;
}

/// Tiles of 256 rows are faster by the row; of 128 there where they leave fewer blocks without work.
template <bool Lines, class Out>
bool launch_fp8_wgmma(const Fp8Product& p) {
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, p.y.device().index),
        "cudaDeviceGetAttribute");
  const auto m = static_cast<int>(p.y.dim(0));
  const auto n = static_cast<int>(p.y.dim(1));
  const auto rounds = [&](int pairs) { return (pairs + multiprocessors / 2 - 1) / (multiprocessors / 2); };
  const int with_one = rounds(Fp8Grid<1>(m, n).pairs());
  const int with_two = 2 * rounds(Fp8Grid<2>(m, n).pairs());
  if (10 * with_two <= 11 * with_one) return launch_fp8_wgmma<Lines, 2, Out>(p, multiprocessors);
  return launch_fp8_wgmma<Lines, 1, Out>(p, multiprocessors);
}

}  // namespace phalanx::cuda
