// Factors of FP8 products: blocks of fp8_tile.cuh, one a tile of the matrix.
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/fp8_tile.cuh"

namespace phalanx::cuda {
namespace {

using namespace fp8_tile;

// Where this block's tile begins, down.
__device__ int64_t tile_row() { return int64_t{blockIdx.y} * kTile; }

template <bool Whole, bool Rows, bool Columns, class T>
__global__ void __launch_bounds__(kThreads, 2)
    lines_kernel(Source<T> from, Sizes s, ScaleFormat format, Lines rows, Lines columns) {
  const Corner c = corner(tile_row());
  Elements v;
  load_elements<Whole>(from, s, c, v);
  if constexpr (Columns) {  // first: the other way round bf16's elements are spilled
    __shared__ ColumnScratch scratch;
    quantize_columns(v, s, c, columns, format, scratch);
  }
  if constexpr (Rows) quantize_rows<Whole>(v, s, c, rows, format);
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
  float largest = kLeastOfFactors;
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
  const Corner c = corner(tile_row());
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
  const Corner c = corner(tile_row());
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
  const Corner c = corner(tile_row());
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

// A block for each tile of x [rows, width], or of several.
dim3 tiles_of(const Tensor& x) {
  const Sizes s = sizes_of(x);
  const int64_t matrices = x.numel() / (s.rows * s.width);
  const dim3 grid(blocks_for(s.width, kTile), blocks_for(s.rows, kTile), static_cast<unsigned>(matrices));
  PHX_CHECK(grid.y <= 65535 && matrices <= 65535, "{} has more tiles than a launch", x.shape());
  return grid;
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
