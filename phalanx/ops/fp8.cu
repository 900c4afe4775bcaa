// Factors of FP8 products. A block has a tile of 128 × 128: each of its threads 8 × 8 neighbouring elements,
// in registers, so that the tile is read once whatever is made of it.
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/fp8.cuh"
#include "phalanx/ops/quantize_scale.h"

namespace phalanx::cuda {
namespace {

constexpr int kTile = static_cast<int>(kScaleGroup);
constexpr int kSide = kTile / kEight;  // threads along each side of the tile
constexpr int kThreads = kSide * kSide;
constexpr int kWarps = kThreads / kWarp;

// Where a thread's elements lie in the matrix.
struct Corner {
  int across;  // of the tile, in threads
  int down;
  int64_t row;
  int64_t column;
};

__device__ Corner corner() {
  const int across = static_cast<int>(threadIdx.x) % kSide;
  const int down = static_cast<int>(threadIdx.x) / kSide;
  return {across, down, int64_t{blockIdx.y} * kTile + down * kEight,
          int64_t{blockIdx.x} * kTile + across * kEight};
}

struct Sizes {
  int64_t rows;
  int64_t width;
};

// What is read: elements, and of f8e4m3 the rows' scales.
template <class T>
struct Source {
  const T* x;
  const float* scales;  // [⌈width / 128⌉, pitch], or null
  int64_t pitch;
};

// Where lines go.
struct Lines {
  f8e4m3* q;  // [lines, length]
  float* scales;
  int64_t length;
  int64_t pitch;  // of scales
  bool whole;     // length and q are multiples of 16
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

// The sixteen threads of a row find its scale.
template <bool Whole>
__device__ void quantize_rows(const Elements& v, const Sizes& s, const Corner& c, const Lines& to,
                              ScaleFormat format) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    float largest = largest_of(v[i], kLeastMagnitude);
    for (int step = kSide / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    const GroupScale scale = group_scale(largest, format);
    const int64_t row = c.row + i;
    if (c.across == 0 && row < to.pitch)
      to.scales[int64_t{blockIdx.x} * to.pitch + row] = row < s.rows ? scale.scale : 0;
    if (row < s.rows)
      store_eight<Whole>(to.q + row * s.width, c.column, s.width, narrow_eight(v[i], scale.by));
  }
}

// The tile transposed: of each column 16 words of 8 rows. Word w of column k lies at w ^ (k / 8), so that
// neither the threads of a row, 8 columns apart, nor those that read a column meet in a bank.
struct Turned {
  alignas(16) uint2 words[kTile][kSide];
};

struct ColumnScratch {
  float largest[kWarps][kTile];
  alignas(16) float by[kTile];
  Turned turned;
};

// Byte j of each of the eight words, the first the lowest.
__device__ uint2 bytes_at(const uint2 (&rows)[kEight], int j) {
  uint32_t bytes[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) bytes[i] = (j < 4 ? rows[i].x : rows[i].y) >> 8 * (j % 4) & 0xff;
  return {bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24,
          bytes[4] | bytes[5] << 8 | bytes[6] << 16 | bytes[7] << 24};
}

__device__ void put_turned(Turned& turned, const Corner& c, int j, uint2 word) {
  turned.words[c.across * kEight + j][c.down ^ c.across] = word;
}

// The tile's columns, to lines of `count`: eight threads have a line's 128 bytes. All threads have put
// theirs.
__device__ void store_turned(const Turned& turned, const Lines& to, int64_t count) {
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

__device__ void quantize_columns(const Elements& v, const Sizes& s, const Corner& c, const Lines& to,
                                 ScaleFormat format, ColumnScratch& scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    float largest = kLeastMagnitude;
#pragma unroll
    for (int i = 0; i < kEight; ++i) largest = fmaxf(largest, fabsf(v[i][j]));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, kSide));
    if (c.down % 2 == 0) scratch.largest[warp][c.across * kEight + j] = largest;
  }
  __syncthreads();
  if (threadIdx.x < kTile) {
    float largest = kLeastMagnitude;
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, scratch.largest[w][threadIdx.x]);
    const GroupScale scale = group_scale(largest, format);
    scratch.by[threadIdx.x] = scale.by;
    const int64_t column = int64_t{blockIdx.x} * kTile + threadIdx.x;
    if (column < to.pitch)
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

template <bool Whole, bool Rows, bool Columns, class T>
__global__ void __launch_bounds__(kThreads, 2)
    lines_kernel(Source<T> from, Sizes s, ScaleFormat format, Lines rows, Lines columns) {
  const Corner c = corner();
  Elements v;
  load_elements<Whole>(from, s, c, v);
  if constexpr (Rows) quantize_rows<Whole>(v, s, c, rows, format);
  if constexpr (Columns) {
    __shared__ ColumnScratch scratch;
    quantize_columns(v, s, c, columns, format, scratch);
  }
}

// Of several matrices, block z has tiles of the z-th: where its elements and scales begin.
__device__ int64_t matrix_begin(const Sizes& s) { return int64_t{blockIdx.z} * s.rows * s.width; }
__device__ int64_t scales_begin() { return int64_t{blockIdx.z} * gridDim.y * gridDim.x; }

// A scale's place among its matrix's.
__device__ int64_t scale_at() { return int64_t{blockIdx.y} * gridDim.x + blockIdx.x; }
__device__ int64_t scale_turned_at() { return int64_t{blockIdx.x} * gridDim.y + blockIdx.y; }

// The scale of the tile, of all threads.
__device__ GroupScale tile_scale(const Elements& v, ScaleFormat format) {
  __shared__ float of_warps[kWarps];
  float largest = kLeastMagnitude;
#pragma unroll
  for (int i = 0; i < kEight; ++i) largest = largest_of(v[i], largest);
  for (int step = kWarp / 2; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = largest;
  __syncthreads();
  for (const float other : of_warps) largest = fmaxf(largest, other);
  return group_scale(largest, format);
}

template <bool Whole, class T>
__global__ void __launch_bounds__(kThreads, 2)
    blocks_kernel(Source<T> from, Sizes s, ScaleFormat format, Lines to) {
  const Corner c = corner();
  from.x += matrix_begin(s);
  Elements v;
  load_elements<Whole>(from, s, c, v);
  const GroupScale scale = tile_scale(v, format);
  if (threadIdx.x == 0) to.scales[scales_begin() + scale_at()] = scale.scale;
  f8e4m3* const q = to.q + matrix_begin(s);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (c.row + i < s.rows)
      store_eight<Whole>(q + (c.row + i) * s.width, c.column, s.width, narrow_eight(v[i], scale.by));
  }
}

template <bool Whole, class T>
__global__ void __launch_bounds__(kThreads, 2)
    blocks_transposed_kernel(Source<T> from, Sizes s, ScaleFormat format, Lines to) {
  __shared__ Turned turned;
  const Corner c = corner();
  from.x += matrix_begin(s);
  Elements v;
  load_elements<Whole>(from, s, c, v);
  const GroupScale scale = tile_scale(v, format);
  if (threadIdx.x == 0) to.scales[scales_begin() + scale_turned_at()] = scale.scale;
  to.q += matrix_begin(s);
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    const float column[] = {v[0][j], v[1][j], v[2][j], v[3][j], v[4][j], v[5][j], v[6][j], v[7][j]};
    put_turned(turned, c, j, narrow_eight(column, scale.by));
  }
  __syncthreads();
  store_turned(turned, to, s.width);
}

template <bool Whole>
__global__ void __launch_bounds__(kThreads) transpose_kernel(Source<f8e4m3> from, Sizes s, Lines to) {
  __shared__ Turned turned;
  const Corner c = corner();
  from.x += matrix_begin(s);
  Pack<f8e4m3, kEight> packs[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) load_eight<Whole>(from.x, c.row + i, c.column, s.rows, s.width, packs[i]);
  uint2 rows[kEight];
  memcpy(rows, packs, sizeof(rows));
#pragma unroll
  for (int j = 0; j < kEight; ++j) put_turned(turned, c, j, bytes_at(rows, j));
  __syncthreads();
  to.q += matrix_begin(s);
  store_turned(turned, to, s.width);
  if (threadIdx.x == 0)
    to.scales[scales_begin() + scale_turned_at()] = from.scales[scales_begin() + scale_at()];
}

// Of a matrix, or of each of several.
Sizes sizes_of(const Tensor& x) {
  const int rank = x.shape().rank();
  return {x.dim(rank - 2), x.dim(rank - 1)};
}

// A block for each tile of x [rows, width], or of several.
dim3 tiles_of(const Tensor& x) {
  const Sizes s = sizes_of(x);
  const int64_t matrices = x.numel() / (s.rows * s.width);
  const dim3 grid(blocks_for(s.width, kTile), blocks_for(s.rows, kTile), static_cast<unsigned>(matrices));
  PHX_CHECK(grid.y <= 65535 && matrices <= 65535, "{} has more tiles than a launch", x.shape());
  return grid;
}

Lines lines_of(const Tensor& q, const Tensor& scales) {
  const int64_t length = sizes_of(q).width;
  return {.q = q.device_data<f8e4m3>(),
          .scales = scales.device_data<float>(),
          .length = length,
          .pitch = sizes_of(scales).width,
          .whole = length % 16 == 0 && reinterpret_cast<uintptr_t>(q.address()) % 16 == 0};
}

template <bool Rows, bool Columns, class T>
void make_lines(const Tensor& x, const Source<T>& from, const Fp8Lines* rows, const Fp8Lines* columns) {
  if (x.numel() == 0) return;
  const Lines to_rows = Rows ? lines_of(rows->q_RK, rows->scales_SR) : Lines{};
  const Lines to_columns = Columns ? lines_of(columns->q_RK, columns->scales_SR) : Lines{};
  const ScaleFormat format = Rows ? rows->format : columns->format;
  with_whole_eights(x.dim(1), {&x, Rows ? &rows->q_RK : &x}, [&](auto whole) {
    lines_kernel<whole, Rows, Columns><<<tiles_of(x), kThreads, 0, current_stream().native()>>>(
        from, sizes_of(x), format, to_rows, to_columns);
  });
  check_launch("fp8_lines");
}

}  // namespace

void fp8_lines_into(const Tensor& x, const Fp8Lines* rows, const Fp8Lines* columns) {
  visit_quantized(x.dtype(), [&](auto t) {
    using T = decltype(t);
    const Source<T> from = {.x = x.device_data<const T>(), .scales = nullptr, .pitch = 0};
    if (rows != nullptr && columns != nullptr) {
      make_lines<true, true>(x, from, rows, columns);
    } else if (rows != nullptr) {
      make_lines<true, false>(x, from, rows, columns);
    } else {
      make_lines<false, true>(x, from, rows, columns);
    }
  });
}

void fp8_columns_into(const Fp8Lines& rows, const Fp8Lines& columns) {
  const Source<f8e4m3> from = {.x = rows.q_RK.device_data<const f8e4m3>(),
                               .scales = rows.scales_SR.device_data<const float>(),
                               .pitch = rows.scales_SR.dim(1)};
  make_lines<false, true>(rows.q_RK, from, nullptr, &columns);
}

void fp8_blocks_into(const Tensor& w, ScaleFormat format, const Fp8Blocks& to) {
  if (w.numel() == 0) return;
  visit_quantized(w.dtype(), [&](auto t) {
    using T = decltype(t);
    const Source<T> from = {.x = w.device_data<const T>(), .scales = nullptr, .pitch = 0};
    with_whole_eights(sizes_of(w).width, {&w, &to.q_NK}, [&](auto whole) {
      blocks_kernel<whole><<<tiles_of(w), kThreads, 0, current_stream().native()>>>(
          from, sizes_of(w), format, lines_of(to.q_NK, to.scales));
    });
  });
  check_launch("fp8_blocks");
}

void fp8_blocks_transposed_into(const Tensor& w, ScaleFormat format, const Fp8Blocks& to) {
  if (w.numel() == 0) return;
  visit_quantized(w.dtype(), [&](auto t) {
    using T = decltype(t);
    const Source<T> from = {.x = w.device_data<const T>(), .scales = nullptr, .pitch = 0};
    with_whole_eights(sizes_of(w).width, {&w}, [&](auto whole) {
      blocks_transposed_kernel<whole><<<tiles_of(w), kThreads, 0, current_stream().native()>>>(
          from, sizes_of(w), format, lines_of(to.q_NK, to.scales));
    });
  });
  check_launch("fp8_blocks_transposed");
}

void fp8_transposed_into(const Fp8Blocks& w, const Fp8Blocks& to) {
  const Tensor& q = w.q_NK;
  if (q.numel() == 0) return;
  const Source<f8e4m3> from = {
      .x = q.device_data<const f8e4m3>(), .scales = w.scales.device_data<const float>(), .pitch = 0};
  with_whole_eights(sizes_of(q).width, {&q}, [&](auto whole) {
    transpose_kernel<whole><<<tiles_of(q), kThreads, 0, current_stream().native()>>>(
        from, sizes_of(q), lines_of(to.q_NK, to.scales));
  });
  check_launch("fp8_transposed");
}

}  // namespace phalanx::cuda
