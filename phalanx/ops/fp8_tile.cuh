// What quantises for FP8 products. A block has a tile of 128 × 128: each of its threads 8 × 8 neighbouring
// elements, in registers, so that the tile is read once whatever is made of it. Block x has the tile's
// columns; columns become lines of which block y has 128 terms.
#pragma once

#include "phalanx/ops/fp8.cuh"
#include "phalanx/ops/fp8.h"
#include "phalanx/ops/quantize_scale.h"

namespace phalanx::cuda::fp8_tile {

inline constexpr int kTile = static_cast<int>(kScaleGroup);
inline constexpr int kSide = kTile / kEight;  // threads along each side of the tile
inline constexpr int kThreads = kSide * kSide;
inline constexpr int kWarps = kThreads / kWarp;

/// Where a thread's elements lie in the matrix.
struct Corner {
  int across;  // of the tile, in threads
  int down;
  int64_t row;
  int64_t column;
};

/// Of a tile whose first row this is; block x has columns from x · kTile on.
__device__ inline Corner corner(int64_t first_row) {
  const int across = static_cast<int>(threadIdx.x) % kSide;
  const int down = static_cast<int>(threadIdx.x) / kSide;
  return {across, down, first_row + down * kEight, int64_t{blockIdx.x} * kTile + across * kEight};
}

struct Sizes {
  int64_t rows;
  int64_t width;
};

/// What is read: elements, and of f8e4m3 the rows' scales.
template <class T>
struct Source {
  const T* x;
  const float* scales;  // [⌈width / 128⌉, pitch], or null
  int64_t pitch;
};

/// Where lines go.
struct Lines {
  f8e4m3* q;  // [lines, length]
  float* scales;
  int64_t length;
  int64_t pitch;   // of scales
  int64_t scaled;  // so many lines are given scales, of 0 behind the last line
  bool whole;      // length and q are multiples of 16
};

using Elements = float[kEight][kEight];

template <bool Whole, class T>
__device__ void load_elements(const Source<T>& from, const Sizes& s, const Corner& c, Elements& v) {
  Pack<T, kEight> packs[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) load_eight<Whole>(from.x, c.row + i, c.column, s.rows, s.width, packs[i]);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    widen_eight(packs[i], v[i]);
    if constexpr (std::is_same_v<T, f8e4m3>) {
      const float scale = from.scales[int64_t{blockIdx.x} * from.pitch + min(c.row + i, s.rows - 1)];
#pragma unroll
      for (int j = 0; j < kEight; ++j) v[i][j] *= scale;
    }
  }
}

/// The sixteen threads of a row find its scale.
template <bool Whole>
__device__ void quantize_rows(const Elements& v, const Sizes& s, const Corner& c, const Lines& to,
                              ScaleFormat format) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    float largest = largest_of(v[i], kLeastOfFactors);
    for (int step = kSide / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    const GroupScale scale = group_scale(largest, format);
    const int64_t row = c.row + i;
    if (c.across == 0 && row < to.scaled)
      to.scales[int64_t{blockIdx.x} * to.pitch + row] = row < s.rows ? scale.scale : 0;
    if (row < s.rows)
      store_eight<Whole>(to.q + row * s.width, c.column, s.width, narrow_eight(v[i], scale.by));
  }
}

/// The tile transposed: of each column 16 words of 8 rows. Word w of column k lies at w ^ (k / 8), so that
/// neither the threads of a row, 8 columns apart, nor those that read a column meet in a bank.
struct Turned {
  alignas(16) uint2 words[kTile][kSide];
};

struct ColumnScratch {
  float largest[kWarps][kTile];
  alignas(16) float by[kTile];
  Turned turned;
};

/// Byte j of each of the eight words, the first the lowest.
__device__ inline uint2 bytes_at(const uint2 (&rows)[kEight], int j) {
  uint32_t bytes[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) bytes[i] = (j < 4 ? rows[i].x : rows[i].y) >> 8 * (j % 4) & 0xff;
  return {bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24,
          bytes[4] | bytes[5] << 8 | bytes[6] << 16 | bytes[7] << 24};
}

__device__ inline void put_turned(Turned& turned, const Corner& c, int j, uint2 word) {
  turned.words[c.across * kEight + j][c.down ^ c.across] = word;
}

/// The tile's columns, to lines of `count`: eight threads have a line's 128 bytes. All threads have put
/// theirs.
__device__ inline void store_turned(const Turned& turned, const Lines& to, int64_t count) {
  constexpr int kOfALine = kTile / 16;
  const int pair = static_cast<int>(threadIdx.x) % kOfALine;  // of words
  const int64_t at = int64_t{blockIdx.y} * kTile + pair * 16;
#pragma unroll
  for (int first = 0; first < kTile; first += kThreads / kOfALine) {
    const int k = first + static_cast<int>(threadIdx.x) / kOfALine;
    const int64_t line = int64_t{blockIdx.x} * kTile + k;
    const int place = (2 * pair) ^ (k / kEight);  // of the first word; the other's differs in the last bit
    const uint2 low = turned.words[k][place];
    const uint2 high = turned.words[k][place ^ 1];
    if (line >= count) continue;
    f8e4m3* const q = to.q + line * to.length;
    if (to.whole) {
      if (at < to.length) *reinterpret_cast<uint4*>(q + at) = {low.x, low.y, high.x, high.y};
    } else {
      store_eight<false>(q, at, to.length, low);
      store_eight<false>(q, at + kEight, to.length, high);
    }
  }
}

__device__ inline void quantize_columns(const Elements& v, const Sizes& s, const Corner& c, const Lines& to,
                                        ScaleFormat format, ColumnScratch& scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    float largest = kLeastOfFactors;
#pragma unroll
    for (int i = 0; i < kEight; ++i) largest = fmaxf(largest, fabsf(v[i][j]));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, kSide));
    if (c.down % 2 == 0) scratch.largest[warp][c.across * kEight + j] = largest;
  }
  __syncthreads();
  if (threadIdx.x < kTile) {
    float largest = kLeastOfFactors;
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, scratch.largest[w][threadIdx.x]);
    const GroupScale scale = group_scale(largest, format);
    scratch.by[threadIdx.x] = scale.by;
    const int64_t column = int64_t{blockIdx.x} * kTile + threadIdx.x;
    if (column < to.scaled)
      to.scales[int64_t{blockIdx.y} * to.pitch + column] = column < s.width ? scale.scale : 0;
  }
  __syncthreads();
  const auto by = load<float, kEight>(scratch.by + c.across * kEight);
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    const float column[] = {v[0][j], v[1][j], v[2][j], v[3][j], v[4][j], v[5][j], v[6][j], v[7][j]};
    put_turned(scratch.turned, c, j, narrow_eight(column, by.v[j]));
  }
  __syncthreads();
  store_turned(scratch.turned, to, s.width);
}

/// Of a matrix, or of each of several.
inline Sizes sizes_of(const Tensor& x) {
  const int rank = x.shape().rank();
  return {x.dim(rank - 2), x.dim(rank - 1)};
}

inline Lines lines_of(const Tensor& q, const Tensor& scales) {
  const int64_t length = sizes_of(q).width;
  return {.q = q.device_data<f8e4m3>(),
          .scales = scales.device_data<float>(),
          .length = length,
          .pitch = sizes_of(scales).width,
          .scaled = sizes_of(scales).width,
          .whole = length % 16 == 0 && reinterpret_cast<uintptr_t>(q.address()) % 16 == 0};
}

}  // namespace phalanx::cuda::fp8_tile
