// Which block computes which tile of a grouped product, from offsets that lie on the device: each block works
// it out for itself, in shared memory, so that the host waits for nothing and nothing is launched before.
//
// Results are cut into tiles of kTileRows × kTileColumns, an expert's own. Two blocks, a pair, take tiles 2i
// and 2i + 1 at a time. Where these lie below one another, they have their columns' factor in common, and
// each block fetches half of it for both.
#pragma once

#include <cuda_runtime.h>

#include "phalanx/ops/cuda_kernels.cuh"

namespace phalanx::cuda {

/// The products of matmul.h: nn x·w, nt x·wᵀ, tn dyᵀ·x.
enum class Form { nn, nt, tn };

inline constexpr int kTileRows = 128;
inline constexpr int kTileColumns = 256;
inline constexpr int kTileTerms = 64;  // of sums, a stage of the ring

/// What a kernel is told. Sizes that differ from expert to expert, and are read from offsets, are 0.
struct GroupedSizes {
  const int64_t* offsets;  // [experts + 1]
  int64_t capacity;        // rows there are; offsets are at most this
  int experts;
  int m;  // rows of an expert's result; 0 of nn and nt
  int n;  // columns
  int k;  // terms of a sum; 0 of tn
  bool add;
};

struct Group {
  int expert;
  int begin;  // its rows
  int rows;
  int tiles_end;  // tiles of this and all groups before
};

template <int MostExperts>
struct Schedule {
  int rows[MostExperts];
  Group groups[MostExperts];  // in the order in which they are computed
  int tiles;
};

/// Where a block that goes through tiles in ascending order is.
struct Place {
  int group = 0;
  int first = 0;  // tile of it
};

struct Tile {
  int expert;
  int begin;   // of the expert's rows
  int row;     // of the expert's result
  int column;  // of it
  int rows;    // that are there; 0: nothing to compute, the other block of the pair has the last tile
  int terms;
  bool shared;  // the other block's tile lies in the same columns
};

#if defined(__CUDACC__)

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <Form F>
__device__ int tiles_of(const GroupedSizes& s, int rows) {
  const int across = ceil_div(s.n, kTileColumns);
  if (F != Form::tn) return ceil_div(rows, kTileRows) * across;
  if (rows == 0 && s.add) return 0;
  return (ceil_div(s.m, kTileRows) * across + 1) / 2 * 2;  // sums of a pair have as many terms
}

/// tiles_end from counts to sums, by one warp.
template <int N>
__device__ void sum_tiles(Schedule<N>& schedule, int experts) {
  int before = 0;
  for (int base = 0; base < experts; base += kWarp) {
    const int g = base + static_cast<int>(threadIdx.x);
    int sum = g < experts ? schedule.groups[g].tiles_end : 0;
    for (int step = 1; step < kWarp; step *= 2) {
      const int below = __shfl_up_sync(~0u, sum, step);
      if (static_cast<int>(threadIdx.x) >= step) sum += below;
    }
    if (g < experts) schedule.groups[g].tiles_end = before + sum;
    before += __shfl_sync(~0u, sum, kWarp - 1);
  }
  if (threadIdx.x == 0) schedule.tiles = before;
}

/// By all threads of a block; tiles(rows) of a group of so many rows. tn's groups go from many terms to few,
/// so that the last to end are short. Offsets that fit no rows are reported, and no tile is left.
template <Form F, int N, class Tiles>
__device__ void make_schedule(const GroupedSizes& s, Schedule<N>& schedule, Fault* fault, Tiles&& tiles) {
  bool broken = false;
  for (int e = threadIdx.x; e < s.experts; e += blockDim.x) {
    const int64_t begin = s.offsets[e];
    const int64_t end = s.offsets[e + 1];
    const bool fits = begin >= 0 && begin <= end && end <= s.capacity;
    if (!fits && blockIdx.x == 0) report(fault, FaultKind::offset, end < begin ? begin : end, s.capacity);
    schedule.rows[e] = fits ? static_cast<int>(end - begin) : 0;
    broken = broken || !fits;
  }
  broken = __syncthreads_or(broken);
  for (int e = threadIdx.x; e < s.experts; e += blockDim.x) {
    const int rows = schedule.rows[e];
    int place = e;
    if (F == Form::tn) {
      place = 0;
      for (int o = 0; o < s.experts; ++o) {
        const int other = schedule.rows[o];
        place += other > rows || (other == rows && o < e) ? 1 : 0;
      }
    }
    schedule.groups[place] = {e, static_cast<int>(s.offsets[e]), rows, tiles(rows)};
  }
  __syncthreads();
  if (threadIdx.x < kWarp) sum_tiles(schedule, s.experts);
  __syncthreads();
  if (broken && threadIdx.x == 0) schedule.tiles = 0;
  __syncthreads();
}

template <Form F, int N>
__device__ void make_schedule(const GroupedSizes& s, Schedule<N>& schedule, Fault* fault) {
  make_schedule<F>(s, schedule, fault, [&](int rows) { return tiles_of<F>(s, rows); });
}

struct Cell {
  int row;
  int column;
};

/// Tile `index` of a result of down × across tiles: columns of at most Band tiles, so that blocks that work
/// at the same time read few rows of both factors.
template <int Band>
__device__ Cell cell(int index, int down, int across) {
  const int band = index / (Band * across);
  const int height = min(Band, down - band * Band);
  const int in_band = index - band * Band * across;
  const int column = in_band / height;
  return {band * Band + in_band - column * height, column};
}

/// Tile `index`, not less than that of the last call with this place. There is one at least.
template <Form F, int N>
__device__ Tile tile_at(const GroupedSizes& s, const Schedule<N>& schedule, int index, Place& at) {
  bool idle = index >= schedule.tiles;
  index = min(index, schedule.tiles - 1);
  while (index >= schedule.groups[at.group].tiles_end) at.first = schedule.groups[at.group++].tiles_end;
  const Group g = schedule.groups[at.group];
  const int height = F == Form::tn ? s.m : g.rows;
  const int down = ceil_div(height, kTileRows);
  const int across = ceil_div(s.n, kTileColumns);
  int in_group = index - at.first;
  const int other = (index ^ 1) - at.first;
  if (in_group >= down * across) {
    in_group = down * across - 1;
    idle = true;
  }
  constexpr int kBand = 16;
  const Cell c = cell<kBand>(in_group, down, across);
  const bool both = !idle && other >= 0 && other < down * across;
  return {.expert = g.expert,
          .begin = g.begin,
          .row = c.row * kTileRows,
          .column = c.column * kTileColumns,
          .rows = idle ? 0 : min(kTileRows, height - c.row * kTileRows),
          .terms = F == Form::tn ? g.rows : s.k,
          .shared = both && cell<kBand>(other, down, across).column == c.column};
}

/// f(tile) for each tile of this block, in the order of all its roles. Every other round of tn goes
/// backwards, so that no block always gets the longest.
template <Form F, int N, class Each>
__device__ void for_each_tile(const GroupedSizes& s, const Schedule<N>& schedule, int rank, Each&& f) {
  const int pairs = static_cast<int>(gridDim.x) / 2;
  const int mine = static_cast<int>(blockIdx.x) / 2;
  Place at;
  for (int round = 0; round * pairs * 2 < schedule.tiles; ++round) {
    const bool back = F == Form::tn && round % 2 == 1;
    const int pair = round * pairs + (back ? pairs - 1 - mine : mine);
    if (pair * 2 < schedule.tiles) f(tile_at<F>(s, schedule, pair * 2 + rank, at));
  }
}

#endif

}  // namespace phalanx::cuda
