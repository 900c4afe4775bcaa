// Factors of experts' FP8 products: blocks of fp8_tile.cuh, one a tile of an expert's rows.
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/fp8_tile.cuh"

namespace phalanx::cuda {
namespace {

using namespace fp8_tile;

template <bool Whole, class T>
__global__ void __launch_bounds__(kThreads, 2)
    live_rows_kernel(Source<T> from, Sizes s, const int64_t* live, ScaleFormat format, Lines rows,
                     Fault* fault) {
  const int64_t first = int64_t{blockIdx.y} * kTile;
  s.rows = live_rows(live, s.rows, fault);
  if (first >= s.rows) return;
  rows.scaled = s.rows;
  const Corner c = corner(first);
  Elements v;
  load_elements<Whole>(from, s, c, v);
  quantize_rows<Whole>(v, s, c, rows, format);
}

struct Grouping {
  const int64_t* offsets;  // [experts + 1]
  int experts;
  int64_t capacity;  // rows there are; offsets are at most this
  Fault* fault;
};

// Rows of one expert that make a tile of columns.
struct Slice {
  int64_t first;
  int64_t rows;  // 0: no expert has this tile
};

// An expert's rows. Offsets that fit no rows are reported, and are no rows.
__device__ Slice rows_of(const Grouping& g, int expert) {
  const int64_t begin = g.offsets[expert];
  const int64_t end = g.offsets[expert + 1];
  if (begin >= 0 && begin <= end && end <= g.capacity) return {begin, end - begin};
  if (blockIdx.x == 0 && blockIdx.y == 0)
    report(g.fault, FaultKind::offset, end < begin ? begin : end, g.capacity);
  return {0, 0};
}

// Tile blockIdx.y of the columns, where all experts' lie behind one another in whole tiles. Each block adds
// these up for itself: a thread has an expert.
__device__ Slice slice_of_tile(const Grouping& g) {
  __shared__ int of_warps[kWarps];
  __shared__ Slice found;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x == 0) found = {0, 0};
  int before = 0;
  for (int base = 0; base < g.experts; base += kThreads) {
    const int expert = base + static_cast<int>(threadIdx.x);
    const Slice own = expert < g.experts ? rows_of(g, expert) : Slice{0, 0};
    const int tiles = static_cast<int>((own.rows + kTile - 1) / kTile);
    int end = tiles;  // of the tiles of this and the warp's experts before
    for (int step = 1; step < kWarp; step *= 2) {
      const int below = __shfl_up_sync(~0u, end, step);
      if (lane >= step) end += below;
    }
    if (lane == kWarp - 1) of_warps[warp] = end;
    __syncthreads();
    end += before;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) end += of_warps[w];
      before += of_warps[w];
    }
    const int at = static_cast<int>(blockIdx.y) - (end - tiles);
    if (at >= 0 && at < tiles) {
      const int64_t first = int64_t{at} * kTile;
      found = {own.first + first, min(int64_t{kTile}, own.rows - first)};
    }
    __syncthreads();
  }
  return found;
}

template <bool Whole, bool Rows, class T>
__global__ void __launch_bounds__(kThreads, 2) columns_kernel(Source<T> from, Sizes s, Grouping grouping,
                                                              ScaleFormat format, Lines rows, Lines columns) {
  __shared__ ColumnScratch scratch;
  const Slice slice = slice_of_tile(grouping);
  if (slice.rows == 0) return;
  from.x += slice.first * s.width;
  if constexpr (std::is_same_v<T, f8e4m3>) from.scales += slice.first;
  s.rows = slice.rows;
  const Corner c = corner(0);
  Elements v;
  load_elements<Whole>(from, s, c, v);
  quantize_columns(v, s, c, columns, format, scratch);  // first: else bf16's elements are spilled
  if constexpr (Rows) {
    rows.q += slice.first * s.width;
    rows.scales += slice.first;
    rows.scaled = slice.rows;
    quantize_rows<Whole>(v, s, c, rows, format);
  }
}

template <bool Rows, class T>
void make_columns(const Tensor& x, const Source<T>& from, const Tensor& offsets, const Fp8Lines* rows,
                  const Fp8Lines& columns) {
  if (x.numel() == 0 || offsets.numel() == 1) return;
  const Grouping grouping = {.offsets = offsets.device_data<const int64_t>(),
                             .experts = static_cast<int>(offsets.numel() - 1),
                             .capacity = x.dim(0),
                             .fault = current_stream().fault()};
  const Lines to_rows = Rows ? lines_of(rows->q_RK, rows->scales_SR) : Lines{};
  const Lines to_columns = lines_of(columns.q_RK, columns.scales_SR);
  const dim3 grid(blocks_for(x.dim(1), kTile), blocks_for(columns.q_RK.dim(1), kTile));
  PHX_CHECK(grid.y <= 65535, "columns by expert of {} have more tiles than a launch", x.shape());
  with_whole_eights(x.dim(1), {&x, Rows ? &rows->q_RK : &x}, [&](auto whole) {
    columns_kernel<whole, Rows><<<grid, kThreads, 0, current_stream().native()>>>(
        from, sizes_of(x), grouping, columns.format, to_rows, to_columns);
  });
  check_launch("fp8_grouped_columns");
}

}  // namespace

void fp8_live_rows_into(const Rows& x, const Fp8Lines& to) {
  if (x.data.numel() == 0) return;
  const dim3 grid(blocks_for(x.data.dim(1), kTile), blocks_for(x.capacity(), kTile));
  PHX_CHECK(grid.y <= 65535, "{} has more tiles than a launch", x.data.shape());
  Stream& stream = current_stream();
  visit_quantized(x.data.dtype(), [&](auto t) {
    using T = decltype(t);
    const Source<T> from = {.x = x.data.device_data<const T>(), .scales = nullptr, .pitch = 0};
    with_whole_eights(x.data.dim(1), {&x.data, &to.q_RK}, [&](auto whole) {
      live_rows_kernel<whole><<<grid, kThreads, 0, stream.native()>>>(
          from, sizes_of(x.data), x.live.device_data<const int64_t>(), to.format,
          lines_of(to.q_RK, to.scales_SR), stream.fault());
    });
  });
  check_launch("fp8_rows");
}

void fp8_grouped_columns_into(const Tensor& x, const Tensor& offsets, const Fp8Lines* rows,
                              const Fp8Lines& columns) {
  visit_quantized(x.dtype(), [&](auto t) {
    using T = decltype(t);
    const Source<T> from = {.x = x.device_data<const T>(), .scales = nullptr, .pitch = 0};
    if (rows != nullptr) {
      make_columns<true>(x, from, offsets, rows, columns);
    } else {
      make_columns<false>(x, from, offsets, rows, columns);
    }
  });
}

void fp8_grouped_columns_into(const Fp8Lines& rows, const Tensor& offsets, const Fp8Lines& columns) {
  const Source<f8e4m3> from = {.x = rows.q_RK.device_data<const f8e4m3>(),
                               .scales = rows.scales_SR.device_data<const float>(),
                               .pitch = rows.scales_SR.dim(1)};
  make_columns<false>(rows.q_RK, from, offsets, nullptr, columns);
}

}  // namespace phalanx::cuda
