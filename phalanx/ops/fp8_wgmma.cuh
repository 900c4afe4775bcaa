// The kernel of FP8 products for sm_90a. Blocks stay, one a multiprocessor, and work in pairs through tiles
// of the result that lie beside one another: they have a's rows in common, and each fetches half of them for
// both. Of each block's three warpgroups the first fetches stages of 128 terms, a group, into a ring. The
// others have half of the tile's rows each, 64 or twice 64 (Waves). The tensor cores sum 64 rows over one
// group, these sums are scaled and added in f32 while the other warpgroup's are made.
#pragma once

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/fp8_schedule.cuh"
#include "phalanx/ops/fp8_wgmma.h"
#include "phalanx/ops/hopper.cuh"
#include "phalanx/ops/tensor_map.cuh"

namespace phalanx::cuda {

inline constexpr int kFp8Terms = static_cast<int>(kScaleGroup);  // of a stage: 128 bytes
inline constexpr int kWaveRows = 64;
inline constexpr int kMultipliers = 8;  // warps that multiply
inline constexpr int kWarpsOfGroup = kWarpgroup / kWarp;
inline constexpr int kFp8Threads = kWarpgroup + kMultipliers * kWarp;
inline constexpr int kFp8BBytes = kFp8Columns * kFp8Terms;
inline constexpr int kStagedRows = 16;  // of a wave, a warp's

template <int Waves>
inline constexpr int kFp8Rows = 2 * Waves* kWaveRows;

/// Scales of half of a tile's rows: TMA reads from multiples of 16 bytes on, and experts' rows begin
/// anywhere.
inline constexpr int kScalesBefore = 3;  // at most, of rows before
template <int Waves>
inline constexpr int kScalesOfHalf = kFp8Rows<Waves> / 2 + kScalesBefore + 1;

/// How a warp's rows of a wave leave. Rows of bf16 are staged half at a time, only to be stored in whole
/// lines. Rows of f32 are staged whole and leave by bulk copies, which add where they have to, while the
/// next wave or tile is summed; a stage or two of the ring make room for them. Pitches, in bytes, spread
/// rows over the banks.
template <class Out, int Waves>
struct Fp8Staging {
  static constexpr bool kBulk = sizeof(Out) == sizeof(float);
  static constexpr int kStages = Waves == 2 ? (kBulk ? 3 : 4) : (kBulk ? 4 : 6);
  static constexpr int kColumns = kBulk ? 128 : 64;
  static constexpr int kPitch = (kColumns + 8) * int{sizeof(Out)};
};

/// Dynamic shared memory, from a multiple of 1024 bytes on.
template <class Out, int Waves>
struct Fp8Stages {
  using Staging = Fp8Staging<Out, Waves>;

  alignas(1024) std::byte a[Staging::kStages][kFp8Rows<Waves> * kFp8Terms];
  std::byte b[Staging::kStages][kFp8BBytes];
  struct alignas(128) ScalesOfHalf {
    float v[kScalesOfHalf<Waves>];
  };
  ScalesOfHalf scales_a[Staging::kStages][2];
  alignas(128) float scales_b[Staging::kStages][kFp8Columns];  // of lines
  std::byte staged[kMultipliers][kStagedRows * Staging::kPitch];
};

template <class Out, int Waves>
struct Fp8Barriers {
  uint64_t full[Fp8Staging<Out, Waves>::kStages];
  uint64_t empty[Fp8Staging<Out, Waves>::kStages];
};

struct Fp8Maps {
  CUtensorMap a;
  CUtensorMap b;
  CUtensorMap scales_a;
  CUtensorMap scales_b;  // of lines
};

struct Fp8Sizes {
  int n;
  int groups;             // of terms, of a matrix of b
  const float* scales_b;  // of blocks [.., ⌈n / 128⌉, groups]
  bool add;
  bool pairs;  // two neighbouring results are one access
  bool whole;  // 16 bytes of results are
};

#if PHALANX_SM90A

template <int Stages>
struct Fp8Ring {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage < Stages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// Whether a tile has rows for one wave only: both warpgroups have one, and what lies behind is not fetched.
/// Of one product only the last rows could be so few, and the kernel is the faster without looking.
template <class Tiles, int Waves>
__device__ bool is_short(const Fp8Tile& t) {
  return Tiles::kRagged && Waves == 2 && t.rows <= kFp8Rows<1>;
}

/// How far before a tile's first row the rows begin whose scales are fetched.
template <class Tiles>
__device__ int scales_before(const Fp8Tile& t) {
  return Tiles::kRagged ? t.row_a & kScalesBefore : 0;
}

/// One thread: all stages of a tile. Each block of the pair fetches half of a for both; of a short tile the
/// first has it all.
template <bool Lines, class Tiles, class Out, int Waves>
__device__ void fetch_tile(const Fp8Tile& t, const Fp8Maps& maps, Fp8Stages<Out, Waves>& stages,
                           Fp8Barriers<Out, Waves>& barriers,
                           Fp8Ring<Fp8Staging<Out, Waves>::kStages>& ring) {
  constexpr int kHalf = kFp8Rows<Waves> / 2;
  constexpr uint32_t kHalfBytes = kHalf * kFp8Terms + kScalesOfHalf<Waves> * sizeof(float);
  constexpr uint32_t kOwnBytes = kFp8BBytes + (Lines ? sizeof(stages.scales_b[0]) : 0);
  const int half = static_cast<int>(cluster_rank()) * kHalf;
  const bool whole = !is_short<Tiles, Waves>(t);
  const uint32_t bytes = kOwnBytes + (whole ? 2 : 1) * kHalfBytes;
#pragma unroll 1
  for (int g = t.group; g < t.group + t.groups; ++g) {
    const int at = ring.stage;
    uint64_t* const full = &barriers.full[at];
    barrier_wait(&barriers.empty[at], ring.parity ^ 1);
    barrier_expect(full, bytes);
    if (whole || half == 0) {
      fetch_for_both(stages.a[at] + half * kFp8Terms, &maps.a, {g * kFp8Terms, t.row_a + half, 0}, full);
      fetch_for_both(stages.scales_a[at][half / kHalf].v, &maps.scales_a,
                     {t.row_a - scales_before<Tiles>(t) + half, g, 0}, full);
    }
    fetch(stages.b[at], &maps.b, {g * kFp8Terms, t.column, t.expert}, full);
    if constexpr (Lines) fetch(stages.scales_b[at], &maps.scales_b, {t.column, g, 0}, full);
    ring.advance();
  }
}

/// What the multipliers' roles need.
template <class Out, int Waves>
struct Fp8Multiplier {
  Fp8Stages<Out, Waves>& stages;
  Fp8Barriers<Out, Waves>& barriers;
  int warp;  // 0 … kMultipliers − 1, uniform for the compiler too, which must not see wgmma diverge
  Fp8Ring<Fp8Staging<Out, Waves>::kStages> ring;

  /// Of a tile of so many waves, this warpgroup's first row.
  __device__ int group_row(int waves) const { return warp / kWarpsOfGroup * waves * kWaveRows; }
  /// Of the warpgroup's, this warp's first row of a wave.
  __device__ int row(int wave) const { return wave * kWaveRows + warp % kWarpsOfGroup * kStagedRows; }
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
template <bool Lines, class Tiles, int OfTile, class Out, int Waves>
__device__ void sum_tile(float (&total)[OfTile][64], const Fp8Tile& t, const Fp8Sizes& s,
                         Fp8Multiplier<Out, Waves>& m) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row_of_blocks = t.expert * ((s.n + kFp8Columns - 1) / kFp8Columns) + t.column / kFp8Columns;
  const float* const of_blocks = s.scales_b + int64_t{row_of_blocks} * s.groups;
  float next = Lines ? 0 : __ldg(of_blocks);
#pragma unroll
  for (int w = 0; w < OfTile; ++w) {
#pragma unroll
    for (float& sum : total[w]) sum = 0;
  }
#pragma unroll 1
  for (int g = 0; g < t.groups; ++g) {
    const float of_block = next;
    if (!Lines && g + 1 < t.groups) next = __ldg(of_blocks + g + 1);
    m.await();
    constexpr int kHalf = kFp8Rows<Waves> / 2;
    const int first = m.group_row(OfTile);
    const std::byte* const a = m.stages.a[m.ring.stage] + first * kFp8Terms;
    const std::byte* const b = m.stages.b[m.ring.stage];
    const float* const scales_a =
        m.stages.scales_a[m.ring.stage][first / kHalf].v + scales_before<Tiles>(t) + first % kHalf + lane / 4;
    const float* const scales_b = m.stages.scales_b[m.ring.stage];
#pragma unroll
    for (int w = 0; w < OfTile; ++w) {
      float sums[64];
      multiply_group(sums, a + w * kWaveRows * kFp8Terms, b);
      const float of_rows[] = {scales_a[m.row(w)], scales_a[m.row(w) + 8]};
      warpgroup_wait<0>();
      fence_sums(sums);
      if constexpr (Lines) {
        promote(total[w], sums, of_rows, scales_b);
        if (w == OfTile - 1) m.release();
      } else {
        if (w == OfTile - 1) m.release();
        promote(total[w], sums, of_rows, of_block);
      }
    }
  }
}

/// The same for a warpgroup whose rows, or columns, are not there.
template <class Out, int Waves>
__device__ void pass_tile(const Fp8Tile& t, Fp8Multiplier<Out, Waves>& m) {
#pragma unroll 1
  for (int g = 0; g < t.groups; ++g) {
    m.await();
    m.release();
  }
}

/// This thread's lane, read where it stands: what follows from it is worked out there, and takes no registers
/// while sums are made.
__device__ inline int lane_now() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

/// f(i, row, column) for each pair sums[i], sums[i + 1] of a warp's 16 rows that has a place.
template <class F>
__device__ void for_each_pair(int rows, int columns, F&& f) {
  const int lane = lane_now();
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

__device__ inline uint32_t narrow_pair(float low, float high) {
  return uint32_t{narrow<bf16>(low).bits} | uint32_t{narrow<bf16>(high).bits} << 16;
}

/// Staged rows to global memory where 16 bytes of them are not one access: an element a lane.
template <int Pitch, class Out>
__device__ void send_singly(const std::byte* staged, Out* to, int rows, int columns, const Fp8Sizes& s) {
  constexpr bool kAdds = sizeof(Out) == sizeof(float);  // others have been added to before
#pragma unroll 1
  for (int row = 0; row < min(rows, kStagedRows); ++row) {
    Out* const there = to + int64_t{row} * s.n;
    const auto* const here = reinterpret_cast<const Out*>(staged + row * Pitch);
#pragma unroll 1
    for (int column = lane_now(); column < columns; column += kWarp) {
      Out sum = here[column];
      if constexpr (kAdds) sum += s.add ? there[column] : 0;
      there[column] = sum;
    }
  }
}

/// Staged rows of bf16: eight lanes have 128 bytes of one.
template <int Pitch>
__device__ void send_rows(const std::byte* staged, bf16* to, int rows, int columns, const Fp8Sizes& s) {
  if (!s.whole) return send_singly<Pitch>(staged, to, rows, columns, s);
  const int lane = lane_now();
  const int column = lane % 8 * 8;
#pragma unroll
  for (int i = 0; i < kStagedRows / 4; ++i) {
    const int row = i * 4 + lane / 8;
    if (row >= rows || column >= columns) continue;
    store(to + int64_t{row} * s.n + column,
          load<bf16, 8>(reinterpret_cast<const bf16*>(staged + row * Pitch) + column));
  }
}

/// Of f32: a lane has a row.
template <int Pitch>
__device__ void send_rows(const std::byte* staged, float* to, int rows, int columns, const Fp8Sizes& s) {
  if (!s.whole) return send_singly<Pitch>(staged, to, rows, columns, s);
  const int lane = lane_now();
  if (lane >= min(rows, kStagedRows)) return;
  float* const there = to + int64_t{lane} * s.n;
  const auto* const here = reinterpret_cast<const float*>(staged + lane * Pitch);
  const auto bytes = static_cast<uint32_t>(columns * int{sizeof(float)});
  if (s.add) {
    bulk_add(there, here, bytes);
  } else {
    bulk_store(there, here, bytes);
  }
  bulk_commit();
}

/// The warp's 16 rows of a wave, to rows at a distance of s.n. Of bf16, half of the columns after the other.
template <class Staging>
__device__ void store_rows(float (&sums)[64], bf16* to, int rows, int columns, const Fp8Sizes& s,
                           std::byte* staged) {
  const int lane = lane_now();
  if (s.add) add_rows(sums, to, rows, columns, s);
  std::byte* const at = staged + lane % 16 * Staging::kPitch + lane / 16 * 16;
#pragma unroll
  for (int part = 0; part < kFp8Columns / Staging::kColumns; ++part) {
    __syncwarp();  // what was staged before has been read
#pragma unroll
    for (int j = 0; j < Staging::kColumns / 16; ++j) {
      const float* const v = sums + part * (Staging::kColumns / 2) + 8 * j;
      const uint32_t m[] = {narrow_pair(v[0], v[1]), narrow_pair(v[2], v[3]), narrow_pair(v[4], v[5]),
                            narrow_pair(v[6], v[7])};
      store_matrices(at + j * 32, m);
    }
    __syncwarp();
    const int first = part * Staging::kColumns;
    send_rows<Staging::kPitch>(staged, to + first, rows, min(columns - first, Staging::kColumns), s);
  }
}

/// Of f32.
template <class Staging>
__device__ void store_rows(float (&sums)[64], float* to, int rows, int columns, const Fp8Sizes& s,
                           std::byte* staged) {
  const int lane = lane_now();
  bulk_wait_read();
  __syncwarp();
  std::byte* const at = staged + lane / 4 * Staging::kPitch + lane % 4 * 8;
#pragma unroll
  for (int j = 0; j < kFp8Columns / 8; ++j) {
    const float* const v = sums + 4 * j;
    *reinterpret_cast<float2*>(at + j * 32) = {v[0], v[1]};
    *reinterpret_cast<float2*>(at + 8 * Staging::kPitch + j * 32) = {v[2], v[3]};
  }
  fence_async_proxy();
  __syncwarp();
  send_rows<Staging::kPitch>(staged, to, rows, columns, s);
}

/// A tile of so many waves: its sums, to where they belong.
template <bool Lines, class Tiles, int OfTile, class Out, int Waves>
__device__ void multiply_tile(const Fp8Tile& t, const Fp8Sizes& s, Fp8Multiplier<Out, Waves>& m, Out* y) {
  const int first = m.group_row(OfTile);
  if (first >= t.rows || t.column >= s.n) return pass_tile(t, m);
  float total[OfTile][64];
  sum_tile<Lines, Tiles>(total, t, s, m);
#pragma unroll
  for (int w = 0; w < OfTile; ++w) {
    const int row = first + m.row(w);
    Out* const to = y + int64_t{t.row + row} * s.n + t.column;
    store_rows<Fp8Staging<Out, Waves>>(total[w], to, t.rows - row, min(s.n - t.column, kFp8Columns), s,
                                       m.stages.staged[m.warp]);
  }
}

#endif

template <bool Lines, int Waves, class Tiles, class Out>
__global__ __launch_bounds__(kFp8Threads, 1) void fp8_wgmma(const __grid_constant__ Fp8Maps maps, Tiles tiles,
                                                            Fp8Sizes sizes, Out* y) {
#if PHALANX_SM90A
  using Stages = Fp8Stages<Out, Waves>;
  __shared__ Fp8Barriers<Out, Waves> barriers;
  __shared__ typename Tiles::Shared schedule;
  extern __shared__ std::byte dynamic[];
  auto& stages = *reinterpret_cast<Stages*>(dynamic + (1024 - shared_address(dynamic) % 1024) % 1024);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Stages::Staging::kStages; ++i) {
      barrier_init(&barriers.full[i], 1);
      barrier_init(&barriers.empty[i], 2 * kMultipliers);
    }
    barrier_init_fence();
  }
  tiles.prepare(schedule);
  cluster_sync();
  if (warp < kWarpsOfGroup) {
    leave_registers<40>();
    if (threadIdx.x == 0) {
      Fp8Ring<Stages::Staging::kStages> ring;
      tiles.for_each(schedule,
                     [&](const Fp8Tile& t) { fetch_tile<Lines, Tiles>(t, maps, stages, barriers, ring); });
    }
    __syncwarp();
  } else {
    take_registers<232>();
    Fp8Multiplier<Out, Waves> m = {
        .stages = stages, .barriers = barriers, .warp = warp - kWarpsOfGroup, .ring = {}};
    tiles.for_each(schedule, [&](const Fp8Tile& t) {
      if (is_short<Tiles, Waves>(t)) {
        multiply_tile<Lines, Tiles, 1>(t, sizes, m, y);
      } else {
        multiply_tile<Lines, Tiles, Waves>(t, sizes, m, y);
      }
    });
    if (Stages::Staging::kBulk) bulk_wait();
  }
  cluster_sync();  // the other block may still arrive at this one's barriers
#endif
}

/// Whether the kernel has a body here: without one it has no shared memory. All GPUs of a process are alike.
template <bool Lines, int Waves, class Tiles, class Out>
bool has_fp8_wgmma() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, fp8_wgmma<Lines, Waves, Tiles, Out>), "cudaFuncGetAttributes");
    return attributes.sharedSizeBytes > 0;
  }();
  return has;
}

inline int multiprocessors_of(const Tensor& y) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, y.device().index),
        "cudaDeviceGetAttribute");
  return count;
}

/// On so many pairs of blocks.
template <bool Lines, int Waves, class Out, class Tiles>
bool launch_fp8_wgmma(const Fp8Product& p, const Tiles& tiles, int pairs) {
  if (!has_fp8_wgmma<Lines, Waves, Tiles, Out>()) return false;
  constexpr int kRows = kFp8Rows<Waves>;
  const CUtensorMap scales_a = tensor_map_of_rows(p.a.scales_SR, kScalesOfHalf<Waves>);
  const Fp8Maps maps = {.a = tensor_map(p.a.q_RK, kRows / 2),
                        .b = tensor_map(p.b, kFp8Columns),
                        .scales_a = scales_a,
                        .scales_b = Lines ? tensor_map_of_rows(p.scales_b, kFp8Columns) : scales_a};
  const auto at = reinterpret_cast<uintptr_t>(p.y.address());
  const int64_t n = p.y.dim(p.y.shape().rank() - 1);
  const Fp8Sizes sizes = {.n = static_cast<int>(n),
                          .groups = static_cast<int>(p.a.scales_SR.dim(0)),
                          .scales_b = p.scales_b.device_data<const float>(),
                          .add = p.into == Into::add,
                          .pairs = n % 2 == 0 && at % (2 * sizeof(Out)) == 0,
                          .whole = n * sizeof(Out) % 16 == 0 && at % 16 == 0};
  const auto kernel = fp8_wgmma<Lines, Waves, Tiles, Out>;
  const size_t bytes = sizeof(Fp8Stages<Out, Waves>) + 1024;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(2 * pairs));
  launch.blockDim = dim3(kFp8Threads);
  launch.dynamicSmemBytes = bytes;
  launch.stream = current_stream().native();
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  check(cudaLaunchKernelEx(&launch, kernel, maps, tiles, sizes, p.y.device_data<Out>()), "fp8_wgmma");
  return true;
}

/// Tiles of 256 rows are faster by the row; of 128 there where they leave fewer blocks without work.
template <bool Lines, class Out>
bool launch_fp8_wgmma(const Fp8Product& p) {
  const int m = static_cast<int>(p.y.dim(0));
  const int n = static_cast<int>(p.y.dim(1));
  const int groups = static_cast<int>(p.a.scales_SR.dim(0));
  const Fp8DenseTiles<kFp8Rows<1>> one = {m, n, groups};
  const Fp8DenseTiles<kFp8Rows<2>> two = {m, n, groups};
  const int most = multiprocessors_of(p.y) / 2;
  const auto rounds = [&](int pairs) { return (pairs + most - 1) / most; };
  if (10 * 2 * rounds(two.pairs()) <= 11 * rounds(one.pairs()))
    return launch_fp8_wgmma<Lines, 2, Out>(p, two, std::min(most, two.pairs()));
  return launch_fp8_wgmma<Lines, 1, Out>(p, one, std::min(most, one.pairs()));
}

/// nt: a are the experts' rows, b [E, N, K], y [R, N]. tn: a and b are columns by expert, y [E, M, N].
template <Form F, class Out>
bool launch_fp8_grouped(const Fp8Product& p, const Tensor& offsets) {
  constexpr bool kTn = F == Form::tn;
  const Fp8GroupedTiles<F, kFp8Rows<2>> tiles = {.sizes = {.offsets = offsets.device_data<int64_t>(),
                                                           .capacity = kTn ? p.a.q_RK.dim(1) : p.y.dim(0),
                                                           .experts = static_cast<int>(offsets.numel() - 1),
                                                           .m = kTn ? static_cast<int>(p.y.dim(1)) : 0,
                                                           .n = static_cast<int>(p.y.dim(kTn ? 2 : 1)),
                                                           .k = kTn ? 0 : static_cast<int>(p.a.q_RK.dim(1)),
                                                           .add = p.into == Into::add},
                                                 .fault = current_stream().fault()};
  return launch_fp8_wgmma<kTn, 2, Out>(p, tiles, multiprocessors_of(p.y) / 2);
}

}  // namespace phalanx::cuda
