// Which tiles a pair of blocks of an FP8 product takes, one after another: two that lie beside one another
// and have a's rows in common. Of one product their order is known beforehand; of products grouped by expert
// each block works it out from the offsets on the device (grouped_schedule.cuh).
//
// Such tiles are a kernel's parameter. Ragged ones begin at any row of a, and many have few rows. All threads
// call prepare once, with shared memory of the block's; then each role calls for_each, and all get the same
// tiles in the same order.
#pragma once

#include "phalanx/ops/fp8_wgmma.h"
#include "phalanx/ops/grouped_schedule.cuh"
#include "phalanx/ops/hopper.cuh"

namespace phalanx::cuda {

inline constexpr int kFp8Columns = 128;  // of a tile
inline constexpr int kFp8BandRows = 2048;

/// One block's tile. Behind the last column there may be one more, to make up a pair.
struct Fp8Tile {
  int row;     // of y, where experts' matrices lie one below the other
  int row_a;   // of a
  int rows;    // that are there
  int column;  // of y, and row of b
  int expert;  // of b, and of its scales by blocks
  int group;   // of terms, the first
  int groups;
};

/// Of one product: tiles of so many rows.
template <int Rows>
struct Fp8DenseTiles {
  static constexpr bool kRagged = false;
  struct Shared {};

  int m;
  int n;
  int groups;

  __host__ __device__ int down() const { return (m + Rows - 1) / Rows; }
  __host__ __device__ int across() const { return (n + 2 * kFp8Columns - 1) / (2 * kFp8Columns); }
  __host__ __device__ int pairs() const { return down() * across(); }

#if PHALANX_SM90A
  __device__ void prepare(Shared&) const {}

  template <class Each>
  __device__ void for_each(const Shared&, Each&& f) const {
    const int rank = static_cast<int>(cluster_rank());
    for (int pair = static_cast<int>(blockIdx.x) / 2; pair < pairs();
         pair += static_cast<int>(gridDim.x) / 2) {
      const Cell c = cell<kFp8BandRows / Rows>(pair, down(), across());
      const int row = c.row * Rows;
      f(Fp8Tile{.row = row,
                .row_a = row,
                .rows = min(Rows, m - row),
                .column = (2 * c.column + rank) * kFp8Columns,
                .expert = 0,
                .group = 0,
                .groups = groups});
    }
  }
#endif
};

/// Of products grouped by expert. nt: rows of a and y are the experts', b and its scales have a matrix for
/// each. tn: y has a matrix for each, and terms are the experts', each one's from a multiple of 128 on
/// (fp8_grouped.h).
template <Form F, int Rows>
struct Fp8GroupedTiles {
  static constexpr bool kRagged = true;
  using Shared = Schedule<kMostFp8Experts>;

  GroupedSizes sizes;
  Fault* fault;

#if PHALANX_SM90A
  __device__ int across() const { return ceil_div(sizes.n, 2 * kFp8Columns); }

  __device__ void prepare(Shared& schedule) const {
    make_schedule<F>(sizes, schedule, fault, [this](int rows) {
      if (F == Form::tn && rows == 0 && sizes.add) return 0;
      return ceil_div(F == Form::tn ? sizes.m : rows, Rows) * across();
    });
    if constexpr (F == Form::tn) {
      for (int i = threadIdx.x; i < sizes.experts; i += blockDim.x) {
        Group& group = schedule.groups[i];
        group.begin = 0;
        for (int e = 0; e < group.expert; ++e) group.begin += groups_of(schedule.rows[e]);
      }
      __syncthreads();
    }
  }

  template <class Each>
  __device__ void for_each(const Shared& schedule, Each&& f) const {
    const int rank = static_cast<int>(cluster_rank());
    const int pairs = static_cast<int>(gridDim.x) / 2;
    const int mine = static_cast<int>(blockIdx.x) / 2;
    Place at;
    for (int round = 0; round * pairs < schedule.tiles; ++round) {
      const bool back = F == Form::tn && round % 2 == 1;  // so that no pair always gets the longest
      const int pair = round * pairs + (back ? pairs - 1 - mine : mine);
      if (pair >= schedule.tiles) continue;
      while (pair >= schedule.groups[at.group].tiles_end) at.first = schedule.groups[at.group++].tiles_end;
      f(tile(schedule.groups[at.group], pair - at.first, rank));
    }
  }

 private:
  static __device__ int groups_of(int terms) { return ceil_div(terms, static_cast<int>(kScaleGroup)); }

  __device__ Fp8Tile tile(const Group& g, int pair, int rank) const {
    const int height = F == Form::tn ? sizes.m : g.rows;
    const Cell c = cell<kFp8BandRows / Rows>(pair, ceil_div(height, Rows), across());
    const int row = c.row * Rows;
    Fp8Tile t = {.row = g.begin + row,
                 .row_a = g.begin + row,
                 .rows = min(Rows, height - row),
                 .column = (2 * c.column + rank) * kFp8Columns,
                 .expert = g.expert,
                 .group = 0,
                 .groups = groups_of(sizes.k)};
    if (F == Form::tn) {
      t.row = g.expert * sizes.m + row;
      t.row_a = row;
      t.expert = 0;
      t.group = g.begin;
      t.groups = groups_of(g.rows);
    }
    return t;
  }
#endif
};

}  // namespace phalanx::cuda
