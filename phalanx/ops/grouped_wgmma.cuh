// The kernel of grouped bf16 products for sm_90a. Blocks stay, one a multiprocessor, and work in pairs
// through the tiles of grouped_schedule.cuh. Of each block's three warpgroups the first fetches stages of
// both factors into a ring, the others multiply, 64 rows of the tile each, and store.
//
// Only the rows are ragged. Of nn and nt they are rows of the result: boxes of x may hold another expert's
// rows behind the last, whose results are not stored. Of tn they are the terms of the sums: behind the last
// they are set to zero in shared memory.
//
// Gated, a form of nt: half of a tile's columns are gates, the others those that they gate, half of all
// columns further on. A thread has both of a pair, and silu(gate) · up is stored, of half as many columns.
#pragma once

#include "phalanx/ops/grouped_schedule.cuh"
#include "phalanx/ops/grouped_wgmma.h"
#include "phalanx/ops/hopper.cuh"
#include "phalanx/ops/tensor_map.cuh"

namespace phalanx::cuda {

inline constexpr int kMultipliers = 8;  // warps that multiply
inline constexpr int kGroupedThreads = kWarpgroup + kMultipliers * kWarp;
inline constexpr int kBoxBytes = kTileTerms * int{kBoxRowBytes};  // a box of 64 rows
inline constexpr int kABytes = kTileRows * kTileTerms * int{sizeof(bf16)};
inline constexpr int kBBytes = kTileColumns * kTileTerms * int{sizeof(bf16)};
inline constexpr int kWarpRows = kTileRows / kMultipliers;

/// How results leave. Rows of f32, which memory cannot take as fast as they are computed, are staged half a
/// tile at a time and leave by bulk copies while the next tile is summed. Rows of bf16 are staged a quarter
/// at a time, only to be stored in whole lines, and the memory goes to one more stage of the ring. Pitches,
/// in bytes, spread rows over the banks.
template <class Out>
struct Staging {
  static constexpr bool kBulk = sizeof(Out) == sizeof(float);
  static constexpr int kStages = kBulk ? 3 : 4;
  static constexpr int kColumns = kBulk ? 128 : 64;
  static constexpr int kPitch = kColumns * int{sizeof(Out)} + 8 * int{sizeof(Out)};
  static constexpr int kParts = kTileColumns / kColumns;
};

/// Dynamic shared memory, from a multiple of 1024 bytes on.
template <class Out>
struct GroupedStages {
  alignas(1024) std::byte a[Staging<Out>::kStages][kABytes];
  std::byte b[Staging<Out>::kStages][kBBytes];
  std::byte staged[kMultipliers][kWarpRows * Staging<Out>::kPitch];
};

inline constexpr int kMostStages = 4;

struct GroupedShared {
  Schedule<kMostGroupedExperts> schedule;
  uint64_t full[kMostStages];
  uint64_t empty[kMostStages];
};

#if PHALANX_SM90A

template <int Stages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage < Stages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// Of a tile, terms from `term` on. Rows of a K-major factor's box are its rows, of an MN-major one's terms.
template <Form F>
__device__ void fetch_a(std::byte* to, const CUtensorMap* map, const Tile& t, int term, uint64_t* full) {
  if constexpr (F == Form::tn) {
    for (int i = 0; i < kTileRows / 64; ++i)
      fetch(to + i * kBoxBytes, map, {t.row + 64 * i, t.begin + term, 0}, full);
  } else {
    fetch(to, map, {term, t.begin + t.row, 0}, full);
  }
}

template <Form F, bool Gated>
__device__ void fetch_b(std::byte* to, const CUtensorMap* map, const Tile& t, int term, int n,
                        uint64_t* full) {
  constexpr int kBoxes = F == Form::nt ? 2 : 4;
  constexpr int kColumns = kTileColumns / kBoxes;
  const int rank = static_cast<int>(cluster_rank());
  for (int i = 0; i < kBoxes; ++i) {
    const int column = Gated ? t.column / 2 + i * (n / 2) : t.column + i * kColumns;
    Coordinates c = {column, term, t.expert};
    if (F == Form::nt) c = {term, column, t.expert};
    if (F == Form::tn) c = {column, t.begin + term, 0};
    std::byte* const box = to + i * (kBBytes / kBoxes);
    if (!t.shared) {
      fetch(box, map, c, full);
    } else if (i / (kBoxes / 2) == rank) {
      fetch_for_both(box, map, c, full);
    }
  }
}

/// Rows [live, 64) of a stage's boxes of tn become zero: the multipliers' two warpgroups share the boxes of
/// b.
__device__ inline void zero_rows(std::byte* a, std::byte* b, int live, int warpgroup) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  std::byte* const boxes[] = {a + warpgroup * kBoxBytes, b + 2 * warpgroup * kBoxBytes,
                              b + (2 * warpgroup + 1) * kBoxBytes};
  for (std::byte* const box : boxes) {
    for (int at = live * int{kBoxRowBytes} + thread * 16; at < kBoxBytes; at += kWarpgroup * 16)
      *reinterpret_cast<uint4*>(box + at) = uint4{0, 0, 0, 0};
  }
  fence_async_proxy();
  named_barrier(1, kMultipliers * kWarp);
}

/// sums (+)= the stage at a (this warpgroup's rows) and b.
template <Form F>
__device__ void multiply_stage(float (&sums)[128], const std::byte* a, const std::byte* b, bool add) {
  constexpr Major kA = F == Form::tn ? Major::MN : Major::K;
  constexpr Major kB = F == Form::nt ? Major::K : Major::MN;
  constexpr int kMma = 16;  // terms
  const auto step = [](Major major) {
    return kMma * (major == Major::K ? int{sizeof(bf16)} : int{kBoxRowBytes});
  };
  warpgroup_arrive();
  for (int i = 0; i < kTileTerms / kMma; ++i) {
    multiply_64x256<kA, kB>(sums, descriptor(a + i * step(kA)), descriptor(b + i * step(kB), kBoxBytes),
                            add || i > 0);
  }
  warpgroup_commit_batch();
}

/// What the multipliers' roles need.
template <class Out>
struct Multiplier {
  GroupedStages<Out>& stages;
  GroupedShared& shared;
  int warp;  // 0 … kMultipliers − 1, uniform for the compiler too, which must not see wgmma diverge
  Ring<Staging<Out>::kStages> ring;

  __device__ int warpgroup() const { return warp / (kWarpgroup / kWarp); }
  __device__ void release(int stage) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane < 2) barrier_arrive(&shared.empty[stage], lane);
  }
  /// Until the stage has come; rows behind the last of tn are zero then.
  template <Form F>
  __device__ void await(int live) const {
    barrier_wait(&shared.full[ring.stage], ring.parity);
    if (F == Form::tn && live < kTileTerms)
      zero_rows(stages.a[ring.stage], stages.b[ring.stage], live, warpgroup());
  }
};

/// A tile's sums; a stage is let go when the next one's product is queued.
template <Form F, class Out>
__device__ void sum_tile(float (&sums)[128], const Tile& t, Multiplier<Out>& m) {
  int last = -1;
#pragma unroll 1
  for (int term = 0; term < t.terms; term += kTileTerms) {
    m.template await<F>(t.terms - term);
    multiply_stage<F>(sums, m.stages.a[m.ring.stage] + m.warpgroup() * kBoxBytes, m.stages.b[m.ring.stage],
                      term > 0);
    warpgroup_wait<1>();
    if (last >= 0) m.release(last);
    last = m.ring.stage;
    m.ring.advance();
  }
  warpgroup_wait<0>();
  if (last >= 0) m.release(last);
}

/// The same for a warpgroup whose rows are not there.
template <Form F, class Out>
__device__ void pass_tile(const Tile& t, Multiplier<Out>& m) {
#pragma unroll 1
  for (int term = 0; term < t.terms; term += kTileTerms) {
    m.template await<F>(t.terms - term);
    m.release(m.ring.stage);
    m.ring.advance();
  }
}

__device__ inline uint32_t narrow_pair(float low, float high) {
  return uint32_t{narrow<bf16>(low).bits} | uint32_t{narrow<bf16>(high).bits} << 16;
}

/// The warp's 16 rows, from sums to shared memory: one part of the columns.
template <int Part>
__device__ void stage_rows(const float (&sums)[128], std::byte* staged, float*) {
  constexpr int kPitch = Staging<float>::kPitch;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::byte* const at = staged + lane / 4 * kPitch + lane % 4 * 8;
#pragma unroll
  for (int j = 0; j < Staging<float>::kColumns / 8; ++j) {
    const float* const s = sums + 64 * Part + 4 * j;
    *reinterpret_cast<float2*>(at + j * 32) = {s[0], s[1]};
    *reinterpret_cast<float2*>(at + 8 * kPitch + j * 32) = {s[2], s[3]};
  }
}

template <int Part>
__device__ void stage_rows(const float (&sums)[128], std::byte* staged, bf16*) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::byte* const at = staged + lane % 16 * Staging<bf16>::kPitch + lane / 16 * 16;
#pragma unroll
  for (int j = 0; j < Staging<bf16>::kColumns / 16; ++j) {
    const float* const s = sums + 32 * Part + 8 * j;
    const uint32_t m[] = {narrow_pair(s[0], s[1]), narrow_pair(s[2], s[3]), narrow_pair(s[4], s[5]),
                          narrow_pair(s[6], s[7])};
    store_matrices(at + j * 32, m);
  }
}

/// Staged rows of f32 to rows at a distance of n. Lanes have a row each.
__device__ inline void send_rows(float* to, const std::byte* staged, int rows, int columns,
                                 const GroupedSizes& s) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  fence_async_proxy();
  __syncwarp();
  if (lane >= min(rows, kWarpRows)) return;
  float* const there = to + int64_t{lane} * s.n;
  const auto* const here = reinterpret_cast<const float*>(staged + lane * Staging<float>::kPitch);
  const auto bytes = static_cast<uint32_t>(min(columns, Staging<float>::kColumns) * int{sizeof(float)});
  if (s.add) {
    bulk_add(there, here, bytes);
  } else {
    bulk_store(there, here, bytes);
  }
  bulk_commit();
}

/// Of bf16. Eight lanes have a row of 128 bytes.
__device__ inline void send_rows(bf16* to, const std::byte* staged, int rows, int columns,
                                 const GroupedSizes& s) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kWarpRows / 4; ++i) {
    const int row = i * 4 + lane / 8;
    const int column = lane % 8 * 8;
    if (row >= rows || column >= columns) continue;
    const auto* const here = reinterpret_cast<const bf16*>(staged + row * Staging<bf16>::kPitch) + column;
    store(to + int64_t{row} * s.n + column, load<bf16, 8>(here));
  }
}

/// sums += the warp's rows of a bf16 result [.., n], which begin at `from`, where it has rows and columns.
__device__ inline void add_rows(float (&sums)[128], const bf16* from, int rows, int columns, int64_t n) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 128; i += 2) {
    const int row = lane / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + lane % 4 * 2;
    if (row >= rows || column >= columns) continue;
    const auto pair = load<bf16, 2>(from + row * n + column);
    sums[i] += widen(pair.v[0]);
    sums[i + 1] += widen(pair.v[1]);
  }
}

/// The first half of the sums, columns that gate the others, become those of a tile of a result of half as
/// many columns. Approximately, far below what bf16 resolves: tensor cores are idle meanwhile.
__device__ inline void gate_tile(float (&sums)[128], Tile& t, GroupedSizes& s) {
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i] *= sums[64 + i] * __fdividef(1, 1 + __expf(-sums[i]));
  t.column /= 2;
  s.n /= 2;
}

/// The warp's rows of a tile of Columns, to where they belong.
template <Form F, int Columns, class Out>
__device__ void store_tile(float (&sums)[128], const Tile& t, const GroupedSizes& s, std::byte* staged,
                           int warp, Out* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = warp * kWarpRows;
  const int rows = t.rows - first;
  const int64_t row = F == Form::tn ? int64_t{t.expert} * s.m : t.begin;
  Out* const to = out + (row + t.row + first) * s.n + t.column;
  const int columns = min(s.n - t.column, Columns);
  if constexpr (F == Form::tn && !Staging<Out>::kBulk) {
    if (s.add) add_rows(sums, to, rows, columns, s.n);
  }
  const auto send = [&]<int Part>(std::integral_constant<int, Part>) {
    constexpr int kBegin = Part * Staging<Out>::kColumns;
    if (kBegin >= columns) return;
    if (Staging<Out>::kBulk && lane < kWarpRows) bulk_wait_read();
    __syncwarp();
    stage_rows<Part>(sums, staged, to);
    send_rows(to + kBegin, staged, rows, columns - kBegin, s);
  };
  [&]<int... Part>(std::integer_sequence<int, Part...>) { (send(std::integral_constant<int, Part>{}), ...); }
  (std::make_integer_sequence<int, Staging<Out>::kParts>());
}

#endif

template <Form F, class Out, bool Gated>
__global__ __launch_bounds__(kGroupedThreads, 1) void grouped_wgmma(const __grid_constant__ CUtensorMap a,
                                                                    const __grid_constant__ CUtensorMap b,
                                                                    GroupedSizes sizes, Out* out,
                                                                    Fault* fault) {
#if PHALANX_SM90A
  __shared__ GroupedShared shared;
  extern __shared__ std::byte dynamic[];
  auto& stages =
      *reinterpret_cast<GroupedStages<Out>*>(dynamic + (1024 - shared_address(dynamic) % 1024) % 1024);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarp, 0);
  const int rank = static_cast<int>(cluster_rank());
  if (threadIdx.x == 0) {
    prefetch(&a);
    prefetch(&b);
    for (int i = 0; i < Staging<Out>::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], 2 * kMultipliers);
    }
    barrier_init_fence();
  }
  make_schedule<F>(sizes, shared.schedule, fault);
  cluster_sync();
  if (warp < kWarpgroup / kWarp) {
    leave_registers<40>();
    if (threadIdx.x == 0) {
      Ring<Staging<Out>::kStages> ring;
      for_each_tile<F>(sizes, shared.schedule, rank, [&](const Tile& t) {
#pragma unroll 1
        for (int term = 0; term < t.terms; term += kTileTerms) {
          uint64_t* const full = &shared.full[ring.stage];
          barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
          barrier_expect(full, kABytes + kBBytes);
          fetch_a<F>(stages.a[ring.stage], &a, t, term, full);
          fetch_b<F, Gated>(stages.b[ring.stage], &b, t, term, sizes.n, full);
          ring.advance();
        }
      });
    }
    __syncwarp();
  } else {
    take_registers<232>();
    Multiplier<Out> m = {.stages = stages, .shared = shared, .warp = warp - kWarpgroup / kWarp, .ring = {}};
    for_each_tile<F>(sizes, shared.schedule, rank, [&](const Tile& t) {
      if (t.rows <= m.warpgroup() * 64) return pass_tile<F>(t, m);
      float sums[128];
      if (t.terms == 0) {
        for (float& sum : sums) sum = 0;
      } else {
        sum_tile<F>(sums, t, m);
      }
      if constexpr (Gated) {
        Tile half = t;
        GroupedSizes stored = sizes;
        gate_tile(sums, half, stored);
        store_tile<F, kTileColumns / 2>(sums, half, stored, stages.staged[m.warp], m.warp, out);
      } else {
        store_tile<F, kTileColumns>(sums, t, sizes, stages.staged[m.warp], m.warp, out);
      }
    });
    if (Staging<Out>::kBulk) bulk_wait();
  }
  cluster_sync();  // the other block may still arrive at this one's barriers
#endif
}

/// Whether the kernel has a body here: without one it has no shared memory. All GPUs of a process are alike.
template <Form F, class Out, bool Gated>
bool has_grouped_wgmma() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, grouped_wgmma<F, Out, Gated>), "cudaFuncGetAttributes");
    return attributes.sharedSizeBytes > 0;
  }();
  return has;
}

template <Form F, class Out, bool Gated = false>
bool launch_grouped_wgmma(const GroupedProduct& p) {
  static_assert(!Gated || (F == Form::nt && std::is_same_v<Out, bf16>));
  if (!has_grouped_wgmma<F, Out, Gated>()) return false;
  constexpr bool kTn = F == Form::tn;
  const CUtensorMap a = tensor_map(p.a, kTn ? kTileTerms : kTileRows);
  const CUtensorMap b = tensor_map(p.b, F == Form::nt ? kTileColumns / 2 : kTileTerms);
  const GroupedSizes sizes = {.offsets = p.offsets.device_data<int64_t>(),
                              .capacity = std::min(p.a.rows(), kTn ? p.b.rows() : p.a.rows()),
                              .experts = static_cast<int>(p.offsets.numel() - 1),
                              .m = kTn ? static_cast<int>(p.c.dim(1)) : 0,
                              .n = static_cast<int>(p.c.dim(kTn ? 2 : 1)) * (Gated ? 2 : 1),
                              .k = kTn ? 0 : static_cast<int>(p.a.dim(1)),
                              .add = p.into == Into::add};
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, p.c.device().index),
        "cudaDeviceGetAttribute");
  const size_t bytes = sizeof(GroupedStages<Out>) + 1024;
  check(cudaFuncSetAttribute(grouped_wgmma<F, Out, Gated>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  Stream& stream = current_stream();
  cudaLaunchAttribute pairs;
  pairs.id = cudaLaunchAttributeClusterDimension;
  pairs.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(multiprocessors / 2 * 2));
  launch.blockDim = dim3(kGroupedThreads);
  launch.dynamicSmemBytes = bytes;
  launch.stream = stream.native();
  launch.attrs = &pairs;
  launch.numAttrs = 1;
  check(cudaLaunchKernelEx(&launch, grouped_wgmma<F, Out, Gated>, a, b, sizes, p.c.device_data<Out>(),
                           stream.fault()),
        "grouped_wgmma");
  return true;
}

}  // namespace phalanx::cuda
