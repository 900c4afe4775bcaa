// Rows in expert order: a counting sort, stable, without a host that waits.
//
// Slots are cut into blocks, and a block's into one piece for each of its warps. The first kernel counts each
// expert's slots of each block; the second turns that into where the block's slots of an expert begin among
// that expert's; in the third every warp counts its piece, then walks through it in order, 32 slots at a
// time.
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/expert_rows.cuh"

namespace phalanx::cuda {
namespace {

constexpr size_t kShared = size_t{48} << 10;
constexpr int64_t kMostBlocks = 264;
constexpr int64_t kMostExperts = 4096;

struct Arguments {
  const int64_t* idx;   // [rows, top_k]
  const int64_t* live;  // of rows
  int64_t capacity;
  int64_t top_k;
  int experts;
  int slots_a_warp;  // a multiple of 32
  int* begins;       // [experts, blocks]: counts, then where they begin
  int* totals;       // [experts]
  int64_t* offsets;  // [experts + 1]
  int64_t* slots;
  int64_t* places;
  int64_t* held;  // [1]
  Fault* fault;
};

// The expert of a slot; −1 for none, or none that is there.
__device__ int expert_of(const Arguments& a, int64_t slot, int64_t end) {
  if (slot >= end) return -1;
  const int64_t e = a.idx[slot];
  if (e >= 0 && e < a.experts) return static_cast<int>(e);
  if (e != -1) report(a.fault, FaultKind::expert, e, a.experts);
  return -1;
}

__device__ int64_t first_slot(const Arguments& a, unsigned warp) {
  return (int64_t{blockIdx.x} * blockDim.y + warp) * a.slots_a_warp;
}

__global__ void count_kernel(Arguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  int* const counts = reinterpret_cast<int*>(shared);
  const unsigned thread = threadIdx.y * kWarp + threadIdx.x;
  const unsigned threads = blockDim.y * kWarp;
  for (unsigned e = thread; e < static_cast<unsigned>(a.experts); e += threads) counts[e] = 0;
  __syncthreads();
  const int64_t end = live_rows(a.live, a.capacity, a.fault) * a.top_k;
  const int64_t first = first_slot(a, 0);
  for (int64_t i = thread; i < int64_t{a.slots_a_warp} * blockDim.y; i += threads) {
    const int e = expert_of(a, first + i, end);
    if (e >= 0) atomicAdd(counts + e, 1);
  }
  __syncthreads();
  for (unsigned e = thread; e < static_cast<unsigned>(a.experts); e += threads) {
    a.begins[int64_t{e} * gridDim.x + blockIdx.x] = counts[e];
  }
}

// Lane by lane the sum of the lanes before it, and of all.
struct WarpScan {
  int before;
  int all;
};
__device__ WarpScan warp_scan(int value) {
  int sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (static_cast<int>(threadIdx.x) >= step) sum += other;
  }
  return {sum - value, __shfl_sync(~0u, sum, kWarp - 1)};
}

// A warp for each expert.
__global__ void begin_kernel(Arguments a, int blocks) {
  const int64_t e = expert_row();
  if (e >= a.experts) return;
  int sum = 0;
  for (int first = 0; first < blocks; first += kWarp) {
    const int b = first + static_cast<int>(threadIdx.x);
    int* const begin = a.begins + e * blocks + b;
    const WarpScan scan = warp_scan(b < blocks ? *begin : 0);
    if (b < blocks) *begin = sum + scan.before;
    sum += scan.all;
  }
  if (threadIdx.x == 0) a.totals[e] = sum;
}

// The first warp: where each expert's rows begin, and the end, in shared memory.
__device__ void scan_totals(const Arguments& a, int* offsets) {
  if (threadIdx.y != 0) return;
  int sum = 0;
  for (int first = 0; first < a.experts; first += kWarp) {
    const int e = first + static_cast<int>(threadIdx.x);
    const WarpScan scan = warp_scan(e < a.experts ? a.totals[e] : 0);
    if (e < a.experts) offsets[e] = sum + scan.before;
    sum += scan.all;
  }
  if (threadIdx.x == 0) offsets[a.experts] = sum;
}

__global__ void place_kernel(Arguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  int* const offsets = reinterpret_cast<int*>(shared);  // [experts + 1]
  int* const next = offsets + a.experts + 1;            // [warps, experts]: where the next row of each goes
  int* const mine = next + threadIdx.y * a.experts;
  const unsigned thread = threadIdx.y * kWarp + threadIdx.x;
  const unsigned threads = blockDim.y * kWarp;
  for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += kWarp) mine[e] = 0;
  scan_totals(a, offsets);
  __syncwarp();
  const int64_t end = live_rows(a.live, a.capacity, a.fault) * a.top_k;
  const int64_t first = first_slot(a, threadIdx.y) + threadIdx.x;
  for (int i = 0; i < a.slots_a_warp; i += kWarp) {
    const int e = expert_of(a, first + i, end);
    if (e >= 0) atomicAdd(mine + e, 1);
  }
  __syncthreads();
  for (int e = static_cast<int>(thread); e < a.experts; e += static_cast<int>(threads)) {
    int begin = offsets[e] + a.begins[int64_t{e} * gridDim.x + blockIdx.x];
    for (unsigned w = 0; w < blockDim.y; ++w) {
      const int count = next[w * a.experts + e];
      next[w * a.experts + e] = begin;
      begin += count;
    }
  }
  __syncthreads();
  for (int i = 0; i < a.slots_a_warp; i += kWarp) {
    const int64_t slot = first + i;
    const int e = expert_of(a, slot, end);
    const unsigned peers = __match_any_sync(~0u, e);
    const unsigned before = peers & ((1u << threadIdx.x) - 1);
    const int place = e < 0 ? -1 : mine[e] + __popc(before);
    __syncwarp();
    if (e >= 0 && before == 0) mine[e] += __popc(peers);
    __syncwarp();
    if (slot < end) a.places[slot] = place;
    if (place >= 0) a.slots[place] = slot;
  }
  if (blockIdx.x > 0) return;
  for (int e = static_cast<int>(thread); e <= a.experts; e += static_cast<int>(threads)) {
    a.offsets[e] = offsets[e];
  }
  if (thread == 0) *a.held = offsets[a.experts];
}

// How slots are cut: by the shape alone.
struct Cut {
  unsigned warps;  // of a block
  int slots_a_warp;
  unsigned blocks;
  size_t shared;  // bytes, of place_kernel

  Cut(int64_t slots, int experts) {
    const size_t row = static_cast<size_t>(experts) * sizeof(int);
    warps = static_cast<unsigned>(std::clamp<size_t>((kShared - sizeof(int)) / row - 1, 1, kRowsOfBlock));
    shared = row * (warps + 1) + sizeof(int);
    const int64_t of_a_block = int64_t{warps} * kWarp;
    const int64_t rounds =
        std::max<int64_t>(4, (slots + of_a_block * kMostBlocks - 1) / (of_a_block * kMostBlocks));
    slots_a_warp = static_cast<int>(rounds * kWarp);
    blocks = std::max(1u, blocks_for(slots, of_a_block * rounds));
  }
};

}  // namespace

ExpertOrder order_by_expert(const Rows& topk_idx, int experts) {
  const Device device = topk_idx.data.device();
  const int64_t slots = topk_idx.data.numel();
  PHX_CHECK(experts >= 0 && experts <= kMostExperts && slots < INT32_MAX,
            "{} slots of {} experts on a GPU, which orders {} at most", slots, experts, kMostExperts);
  const ExpertOrder order = {
      Tensor::empty({experts + 1}, DType::i64, device), Tensor::empty({slots}, DType::i64, device),
      Tensor::empty(topk_idx.data.shape(), DType::i64, device), Tensor::empty({1}, DType::i64, device)};
  const Cut cut(slots, std::max(experts, 1));
  const Tensor begins = Tensor::empty({std::max(experts, 1), cut.blocks}, DType::i32, device);
  const Tensor totals = Tensor::empty({std::max(experts, 1)}, DType::i32, device);
  Stream& stream = current_stream();
  const Arguments a = {.idx = topk_idx.data.device_data<int64_t>(),
                       .live = topk_idx.live.device_data<int64_t>(),
                       .capacity = topk_idx.capacity(),
                       .top_k = topk_idx.data.dim(1),
                       .experts = experts,
                       .slots_a_warp = cut.slots_a_warp,
                       .begins = begins.device_data<int32_t>(),
                       .totals = totals.device_data<int32_t>(),
                       .offsets = order.offsets.device_data<int64_t>(),
                       .slots = order.slots.device_data<int64_t>(),
                       .places = order.places.device_data<int64_t>(),
                       .held = order.live.device_data<int64_t>(),
                       .fault = stream.fault()};
  const dim3 threads(kWarp, cut.warps);
  const size_t counts = static_cast<size_t>(experts) * sizeof(int);
  count_kernel<<<cut.blocks, threads, counts, stream.native()>>>(a);
  if (experts > 0) {
    begin_kernel<<<blocks_for(experts, kRowsOfBlock), expert_row_threads(), 0, stream.native()>>>(
        a, static_cast<int>(cut.blocks));
  }
  place_kernel<<<cut.blocks, threads, cut.shared, stream.native()>>>(a);
  check_launch("order_by_expert");
  return order;
}

}  // namespace phalanx::cuda
