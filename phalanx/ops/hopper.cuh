// What kernels for sm_90a say to the hardware: barriers that count bytes, tiles fetched by TMA, rows stored
// in bulk, and products of a warpgroup (PTX ISA 9.0, chapters on mbarrier, cp.async.bulk and wgmma).
//
// A ring's stage has two barriers: `full` completes when its bytes have come, `empty` when all its readers
// have let go of it. The shared memory of a cluster's blocks has one layout, so that an address of one,
// mapped to another, means the same thing there.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <type_traits>
#include <utility>

// The body of a kernel for sm_90a stands in #if PHALANX_SM90A: other architectures compile it empty.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PHALANX_SM90A 1
#else
#define PHALANX_SM90A 0
#endif

namespace phalanx::cuda {

inline constexpr int kWarpgroup = 128;  // threads

#if PHALANX_SM90A

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// All threads of the cluster's blocks, and what they wrote before.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// The same, but that what they wrote need not be seen: a thread's stores are not waited for, nor loads whose
/// results it has not used.
__device__ inline void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

/// What block `rank` of the cluster has at this place of its shared memory.
__device__ inline float load_from(const float* at, uint32_t rank) {
  float value;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [there];\n"
      "}"
      : "=f"(value)
      : "r"(shared_address(at)), "r"(rank)
      : "memory");
  return value;
}

/// A phase of it ends after `arrivals` and the bytes that they announced.
__device__ inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}

/// Shows barriers just made to the other block and to TMA; cluster_sync follows.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Until the phase of this parity has ended. A fresh barrier's "phase before the first" has parity 1.
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// Arrives and announces bytes.
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

/// Arrives at this barrier of block `rank` of the cluster. Says that wgmma has read a stage, not that what
/// the thread wrote is visible there: a release at the cluster's scope would wait for all its stores.
__device__ inline void barrier_arrive(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

/// What a thread wrote to shared memory becomes visible to TMA and wgmma; a barrier of the threads follows.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Some of the block's threads; `id` is 1 … 15.
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

struct Coordinates {
  int x;  // innermost
  int y;
  int z;
};

/// Fetches the map's box at `c`; elements outside the tensor are zero and count as bytes.
__device__ inline void fetch(void* to, const CUtensorMap* map, Coordinates c, uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(full)), "r"(c.x), "r"(c.y), "r"(c.z)
      : "memory");
}

/// The same into both blocks of a pair, at the same place, and to the barriers of each.
__device__ inline void fetch_for_both(void* to, const CUtensorMap* map, Coordinates c, uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(full)), "r"(c.x), "r"(c.y), "r"(c.z), "h"(uint16_t{3})
      : "memory");
}

/// The same as far as the L2 cache, which sees what others write.
__device__ inline void prefetch(const CUtensorMap* map, Coordinates c) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(map), "r"(c.x),
               "r"(c.y), "r"(c.z)
               : "memory");
}

__device__ inline void prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Queues a copy of bytes (a multiple of 16, as both addresses) to global memory.
__device__ inline void bulk_store(void* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}

/// The same, adding f32.
__device__ inline void bulk_add(float* to, const float* from, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}

__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until what this thread committed has been read from shared memory.
__device__ inline void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
/// Until it has been written.
__device__ inline void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/// Four 8×8 matrices of 16-bit elements; lane l has the address of row l % 8 of matrix l / 8.
__device__ inline void store_matrices(void* row, const uint32_t (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
}

template <int N>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/// A factor of a warpgroup's product in shared memory, in rows of 128 bytes that TMA swizzled (128B), at a
/// multiple of 1024 bytes: elements along k in a row (K-major) or across it (MN-major). `next` is the
/// distance in bytes between the groups of 64 elements across k of an MN-major factor.
__device__ inline uint64_t descriptor(const void* at, uint32_t next = 16) {
  constexpr uint64_t kEightRows = 1024 / 16;
  constexpr uint64_t kSwizzle128 = 1;
  constexpr uint32_t kWithinBlock = (1 << 18) - 1;  // bits above tell the blocks of a cluster apart
  return uint64_t{(shared_address(at) & kWithinBlock) / 16} | uint64_t{next / 16} << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

using cute::SM90::GMMA::Major;

/// sums [64, 256] = a [64, 16] · b [16, 256], or += when `add`. Of a thread, sums[4·j + i] is row
/// 16·warp + lane / 4 + 8·(i / 2), column 8·j + 2·(lane % 4) + i % 2.
template <Major A, Major B>
__device__ void multiply_64x256(float (&sums)[128], uint64_t a, uint64_t b, bool add) {
  using namespace cute::SM90::GMMA;
  [&]<size_t... I>(std::index_sequence<I...>) {
    MMA_64x256x16_F32BF16BF16_SS<A, B>::fma(a, b, sums[I]..., add ? ScaleOut::One : ScaleOut::Zero);
  }
  (std::make_index_sequence<128>());
}

/// The same of f8e4m3, both factors K-major: sums [64, 128] = a [64, 32] · b [128, 32]ᵀ.
__device__ inline void multiply_64x128(float (&sums)[64], uint64_t a, uint64_t b, bool add) {
  using namespace cute::SM90::GMMA;
  [&]<size_t... I>(std::index_sequence<I...>) {
    MMA_64x128x32_F32E4M3E4M3_SS_TN<>::fma(a, b, sums[I]..., add ? ScaleOut::One : ScaleOut::Zero);
  }
  (std::make_index_sequence<64>());
}

/// sums [64, N] = a [64, 16] · b [N, 16]ᵀ, added, both factors K-major; of a thread as above.
template <int N>
__device__ void add_product_64(float (&sums)[N / 2], uint64_t a, uint64_t b) {
  using namespace cute::SM90::GMMA;
  const auto add = [&]<class Mma, size_t... I>(std::type_identity<Mma>, std::index_sequence<I...>) {
    Mma::fma(a, b, sums[I]..., ScaleOut::One);
  };
  constexpr Major kK = Major::K;
  constexpr auto kAll = std::make_index_sequence<N / 2>();
  static_assert(N == 8 || N == 16 || N == 32 || N == 64);
  if constexpr (N == 8) {
    add(std::type_identity<MMA_64x8x16_F32BF16BF16_SS<kK, kK>>(), kAll);
  } else if constexpr (N == 16) {
    add(std::type_identity<MMA_64x16x16_F32BF16BF16_SS<kK, kK>>(), kAll);
  } else if constexpr (N == 32) {
    add(std::type_identity<MMA_64x32x16_F32BF16BF16_SS<kK, kK>>(), kAll);
  } else {
    add(std::type_identity<MMA_64x64x16_F32BF16BF16_SS<kK, kK>>(), kAll);
  }
}

/// No use of sums moves over this: one stands before a product is queued, one after it was waited for.
template <int N>
__device__ void fence_sums(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) cute::warpgroup_fence_operand(sums[i]);
}

using cute::warpgroup_arrive;
using cute::warpgroup_commit_batch;
using cute::warpgroup_wait;

#endif

}  // namespace phalanx::cuda
