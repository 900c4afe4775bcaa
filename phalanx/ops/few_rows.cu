// A block has 16 rows of a weight matrix, all columns, which its warps share: a warp takes 32 columns at a
// time, 16 bytes a lane of two rows each. Lanes' 8 columns are not those that mma.m16n8k16 has next to each
// other, but of a sum over columns any order will do, as long as it is that of x, too. So tensor cores
// multiply what lies in registers as it came, and rows of x beside the first cost nothing. The first
// weights are on their way to the L2 cache before the kernel in front has ended.
#include "phalanx/ops/few_rows.h"

#include <array>

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/dependents.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 16;     // of a weight matrix, of a block
constexpr int kColumns = 32;  // of a step of a warp
constexpr int kLaneColumns = 8;
constexpr int kSteps = 4;  // of a warp, whose weights are under way at once
constexpr int kEight = 8;  // rows of x that an instruction takes
constexpr size_t kMostLinears = 3;

struct Linear {
  const bf16* w;     // [n, k], or of SwiGLU [2 n, k]
  const bf16* bias;  // or null
  const bf16* also;  // or null
  void* y;
  int64_t n;
  unsigned end;  // blocks of this one and those before
};

struct Arguments {
  const bf16* x;
  int64_t k;
  int rows;
  Linear linears[kMostLinears];
};

// Read once: past the L1 cache, and ahead in the L2.
__device__ uint4 load_weights(const bf16* from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// sum [16, 8] += w [16, 16] · x [8, 16]ᵀ.
__device__ void multiply_add(float (&sum)[4], uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3, uint32_t x0,
                             uint32_t x1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(w0), "r"(w1), "r"(w2), "r"(w3), "r"(x0), "r"(x1));
}

// A lane's weights of kSteps steps: of rows `lane / 4` and 8 further down.
struct Ahead {
  uint4 low[kSteps];
  uint4 high[kSteps];
};

// Where a lane reads.
struct Place {
  const bf16* low;   // null: behind the last row
  const bf16* high;  // or null
  int64_t column;    // of the warp's first step
  int64_t columns;   // of all
};

// The first two rounds of fetch, as far as the L2, which sees what others write.
__device__ void prefetch(const Place& p) {
#pragma unroll
  for (int i = 0; i < 2 * kSteps; ++i) {
    const int64_t c = p.column + i * (kWarps * kColumns);
    if (c >= p.columns) continue;
    if (p.low) asm volatile("prefetch.global.L2 [%0];" ::"l"(p.low + c));
    if (p.high) asm volatile("prefetch.global.L2 [%0];" ::"l"(p.high + c));
  }
}

__device__ void fetch(Ahead& a, const Place& p, int64_t step) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int64_t c = p.column + (step + i) * (kWarps * kColumns);
    const bool inside = c < p.columns;
    a.low[i] = inside && p.low ? load_weights(p.low + c) : uint4{};
    a.high[i] = inside && p.high ? load_weights(p.high + c) : uint4{};
  }
}

// What a block does with its sums: its 16 rows of weights are next to each other, or 8 of the first half
// (gates) and those of the second that belong to them.
enum class Ends : uint8_t { linear, swiglu };

// For Blocks · 8 rows of x. Sums of the block's warps are added in their order.
template <int Blocks, class Y, Ends ends>
__global__ void __launch_bounds__(kThreads) multiply(Arguments a) {
  constexpr int kFeatures = ends == Ends::swiglu ? kEight : kRows;
  __shared__ float sums[kWarps][Blocks * kEight][kRows];
  int number = 0;
  while (blockIdx.x >= a.linears[number].end) ++number;
  const Linear& l = a.linears[number];
  const unsigned before = number > 0 ? a.linears[number - 1].end : 0;
  const int64_t first = int64_t{blockIdx.x - before} * kFeatures;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int group = lane / 4;   // the lane's row, of w and of x
  const int member = lane % 4;  // its columns
  const int64_t column = warp * kColumns + member * kLaneColumns;
  const int64_t low = first + group;
  const int64_t high = ends == Ends::swiglu ? low : low + kEight;
  const int64_t half = ends == Ends::swiglu ? l.n : 0;
  const Place place = {low < l.n ? l.w + low * a.k : nullptr,
                       high < l.n ? l.w + (half + high) * a.k : nullptr, column, a.k};
  float sum[Blocks][4] = {};
  Ahead ahead;
  let_next_start();
  prefetch(place);
  wait_for_kernel();
  fetch(ahead, place, 0);
  for (int64_t step = 0; warp * kColumns + step * (kWarps * kColumns) < a.k; step += kSteps) {
    const Ahead here = ahead;
    fetch(ahead, place, step + kSteps);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int64_t c = column + (step + i) * (kWarps * kColumns);
#pragma unroll
      for (int b = 0; b < Blocks; ++b) {
        const int row = b * kEight + group;
        uint4 x = {};
        if (row < a.rows && c < a.k) x = *reinterpret_cast<const uint4*>(a.x + row * a.k + c);
        multiply_add(sum[b], here.low[i].x, here.high[i].x, here.low[i].y, here.high[i].y, x.x, x.y);
        multiply_add(sum[b], here.low[i].z, here.high[i].z, here.low[i].w, here.high[i].w, x.z, x.w);
      }
    }
  }
#pragma unroll
  for (int b = 0; b < Blocks; ++b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[warp][b * kEight + 2 * member + i % 2][group + i / 2 * kEight] = sum[b][i];
    }
  }
  __syncthreads();
  const auto sum_of = [&](int row, int column_of_sums, int64_t feature) {
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += sums[w][row][column_of_sums];
    return l.bias ? value + widen(l.bias[feature]) : value;
  };
  for (int i = threadIdx.x; i < a.rows * kFeatures; i += kThreads) {
    const int row = i / kFeatures;
    const int64_t feature = first + i % kFeatures;
    if (feature >= l.n) continue;
    const int64_t at = row * l.n + feature;
    float value = sum_of(row, i % kFeatures, feature);
    if constexpr (ends == Ends::swiglu) {
      value *= sum_of(row, kEight + i % kFeatures, l.n + feature) / (1 + expf(-value));
    }
    if (l.also) value += widen(l.also[at]);
    static_cast<Y*>(l.y)[at] = narrow<Y>(value);
  }
}

bool whole_words(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0; }

bool fits(const Tensor& x, std::span<const LinearOf> linears) {
  if (x.dtype() != DType::bf16 || x.rows() == 0 || x.rows() > kFewRows) return false;
  if (x.dim(1) == 0 || x.dim(1) % kLaneColumns != 0 || !whole_words(x)) return false;
  if (linears.empty() || linears.size() > kMostLinears) return false;
  const DType dtype = linears[0].y_MN.dtype();
  for (const LinearOf& l : linears) {
    if (l.w_NK.dtype() != DType::bf16 || l.w_NK.rows() == 0 || !whole_words(l.w_NK)) return false;
    if (l.y_MN.dtype() != dtype || (dtype != DType::bf16 && dtype != DType::f32)) return false;
    if (l.b_N.defined() && l.b_N.dtype() != DType::bf16) return false;
    if (l.also_MN.defined() && l.also_MN.dtype() != DType::bf16) return false;
  }
  return true;
}

template <class Y, Ends ends>
void launch(const Arguments& a, unsigned blocks) {
  CUstream_st* const stream = current_stream().native();
  if (a.rows <= kEight) {
    launch_early(multiply<1, Y, ends>, blocks, kThreads, stream, a);
  } else {
    launch_early(multiply<2, Y, ends>, blocks, kThreads, stream, a);
  }
}

const bf16* pointer(const Tensor& t) { return t.defined() ? t.device_data<bf16>() : nullptr; }

}  // namespace

bool multiply_few_rows(const Tensor& x, std::span<const LinearOf> linears) {
  if (!fits(x, linears)) return false;
  Arguments a = {
      .x = x.device_data<bf16>(), .k = x.dim(1), .rows = static_cast<int>(x.rows()), .linears = {}};
  unsigned blocks = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOf& l = linears[i];
    PHX_CHECK(l.w_NK.dim(1) == x.dim(1) && l.y_MN.shape() == Shape({x.rows(), l.w_NK.rows()}),
              "a linear layer {} of {} into {}", l.w_NK.shape(), x.shape(), l.y_MN.shape());
    blocks += blocks_for(l.w_NK.rows(), kRows);
    a.linears[i] = {.w = l.w_NK.device_data<bf16>(),
                    .bias = pointer(l.b_N),
                    .also = pointer(l.also_MN),
                    .y = l.y_MN.address(),
                    .n = l.w_NK.rows(),
                    .end = blocks};
  }
  if (linears[0].y_MN.dtype() == DType::f32) {
    launch<float, Ends::linear>(a, blocks);
  } else {
    launch<bf16, Ends::linear>(a, blocks);
  }
  return true;
}

bool multiply_few_rows_swiglu(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& b) {
  const LinearOf linear = {y, w, b, {}};
  if (!fits(x, {&linear, 1}) || y.dtype() != DType::bf16 || y.numel() == 0) return false;
  PHX_CHECK(w.dim(1) == x.dim(1) && 2 * y.dim(1) == w.rows() && y.rows() == x.rows(),
            "a SwiGLU of {} of {} into {}", w.shape(), x.shape(), y.shape());
  Arguments a = {
      .x = x.device_data<bf16>(), .k = x.dim(1), .rows = static_cast<int>(x.rows()), .linears = {}};
  const unsigned blocks = blocks_for(y.dim(1), kEight);
  a.linears[0] = {.w = w.device_data<bf16>(),
                  .bias = pointer(b),
                  .also = nullptr,
                  .y = y.address(),
                  .n = y.dim(1),
                  .end = blocks};
  launch<bf16, Ends::swiglu>(a, blocks);
  return true;
}

}  // namespace phalanx::cuda
