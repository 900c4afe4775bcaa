// The router's product. Each logit is one sum over the width, in an order that no other row or expert
// changes: no split sums, and no library that chooses its kernel by the number of rows.
#include <cuda_pipeline.h>

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

template <class T>
struct Product {
  const T* x;             // [rows, width]
  const T* w;             // [experts, width]
  Arithmetic<T>* logits;  // [rows, experts]
  int64_t rows;
  int64_t width;
  int64_t experts;
};

// f32 and f64: tiles of 64 rows and experts, of which a thread has 4 × 4.
constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kOfThread = 4;
constexpr int kPlainThreads = (kTile / kOfThread) * (kTile / kOfThread);

// tile[d][i] = from[first + i][at + d], zeros behind the end of either.
template <class T>
__device__ void load_tile(const T* from, int64_t count, int64_t width, int64_t first, int64_t at,
                          T (&tile)[kDepth][kTile + 1]) {
  for (int i = threadIdx.x; i < kTile * kDepth; i += kPlainThreads) {
    const int64_t row = first + i / kDepth;
    const int64_t d = at + i % kDepth;
    tile[i % kDepth][i / kDepth] = row < count && d < width ? from[row * width + d] : T{0};
  }
}

template <class T>
__global__ void __launch_bounds__(kPlainThreads) plain_kernel(Product<T> a) {
  __shared__ T x[kDepth][kTile + 1];
  __shared__ T w[kDepth][kTile + 1];
  const int64_t first_row = int64_t{blockIdx.y} * kTile;
  const int64_t first_expert = int64_t{blockIdx.x} * kTile;
  const int row = static_cast<int>(threadIdx.x) / (kTile / kOfThread);
  const int expert = static_cast<int>(threadIdx.x) % (kTile / kOfThread);
  T sum[kOfThread][kOfThread] = {};
  for (int64_t at = 0; at < a.width; at += kDepth) {
    __syncthreads();
    load_tile(a.x, a.rows, a.width, first_row, at, x);
    load_tile(a.w, a.experts, a.width, first_expert, at, w);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int i = 0; i < kOfThread; ++i) {
#pragma unroll
        for (int j = 0; j < kOfThread; ++j) {
          sum[i][j] =
              fma(x[d][row + i * (kTile / kOfThread)], w[d][expert + j * (kTile / kOfThread)], sum[i][j]);
        }
      }
    }
  }
  for (int i = 0; i < kOfThread; ++i) {
    for (int j = 0; j < kOfThread; ++j) {
      const int64_t r = first_row + row + i * (kTile / kOfThread);
      const int64_t e = first_expert + expert + j * (kTile / kOfThread);
      if (r < a.rows && e < a.experts) a.logits[r * a.experts + e] = sum[i][j];
    }
  }
}

// bf16: tensor cores, whose sums are f32. Blocks of 8 warps have 128 rows and E experts; slices of 64 columns
// come through a ring of stages in shared memory, whose rows are padded so that neighbours lie in other
// banks.
constexpr int kRows = 128;
constexpr int kSlice = 64;
constexpr int kStages = 3;
constexpr int kStride = kSlice + 8;  // of a row in shared memory
constexpr int kThreads = 256;
constexpr int kStep = 16;  // rows and columns of one multiplication; it has kAcross experts
constexpr int kAcross = 8;

template <int E>
struct Tiles {
  static constexpr int kWarpsDown = E == 128 ? 2 : 4;
  static constexpr int kWarpsAcross = kThreads / kWarp / kWarpsDown;
  static constexpr int kRowSteps = kRows / kWarpsDown / kStep;
  static constexpr int kExpertSteps = E / kWarpsAcross / kAcross;
  static constexpr int kStage = (kRows + E) * kStride;  // elements
  static constexpr size_t kBytes = kStages * kStage * sizeof(bf16);
};

// Four matrices of 8 × 8 bf16, of which lane l gives the address of row l % 8 of matrix l / 8, and gets of
// each the elements of row l / 4 in columns 2 · (l % 4) and the next (PTX ISA, ldmatrix).
__device__ void load_matrices(const bf16* row, uint32_t (&to)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// sum [16, 8] += x [16, 16] · w [8, 16]ᵀ (PTX ISA, mma.m16n8k16).
__device__ void multiply_add(float (&sum)[4], const uint32_t (&x)[4], uint32_t w0, uint32_t w1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w0), "r"(w1));
}

// Starts to copy `count` rows of a slice; rows behind `end` and columns behind the width become zeros.
template <int N>
__device__ void start_rows(const bf16* from, int64_t first, int64_t end, int64_t width, int64_t at, int count,
                           bf16* to) {
  constexpr int kPacks = kSlice / N;
  for (int i = threadIdx.x; i < count * kPacks; i += kThreads) {
    const int64_t row = first + i / kPacks;
    const int64_t column = at + i % kPacks * N;
    bf16* const place = to + i / kPacks * kStride + i % kPacks * N;
    const bool inside = row < end && column < width;
    const bf16* const source = inside ? from + row * width + column : from;
    if constexpr (N == 8) {
      __pipeline_memcpy_async(place, source, 16, inside ? 0 : 16);
    } else {
      *place = inside ? *source : bf16{};
    }
  }
}

template <int E, int N>
__global__ void __launch_bounds__(kThreads, 2) tensor_kernel(Product<bf16> a) {
  extern __shared__ __align__(128) unsigned char shared[];
  using S = Tiles<E>;
  bf16* const stages = reinterpret_cast<bf16*>(shared);
  const int64_t first_row = int64_t{blockIdx.y} * kRows;
  const int64_t first_expert = int64_t{blockIdx.x} * E;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp % S::kWarpsDown * (kRows / S::kWarpsDown);
  const int expert = warp / S::kWarpsDown * (E / S::kWarpsAcross);
  const auto slices = static_cast<int>((a.width + kSlice - 1) / kSlice);
  const auto start = [&](int slice) {
    if (slice < slices) {
      bf16* const to = stages + slice % kStages * S::kStage;
      const int64_t at = int64_t{slice} * kSlice;
      start_rows<N>(a.x, first_row, a.rows, a.width, at, kRows, to);
      start_rows<N>(a.w, first_expert, a.experts, a.width, at, E, to + kRows * kStride);
    }
    __pipeline_commit();
  };
  float sum[S::kRowSteps][S::kExpertSteps][4] = {};
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  // Of x matrices go down first, of w across.
  const int x_at = (row + lane % kStep) * kStride + lane / kStep * 8;
  const int w_at = (kRows + expert + lane % 8 + lane / kStep * 8) * kStride + lane / 8 % 2 * 8;
  for (int slice = 0; slice < kStages - 1; ++slice) start(slice);
  for (int slice = 0; slice < slices; ++slice) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();  // the slice is here, and all are done with the one before it, whose stage is next
    start(slice + kStages - 1);
    const bf16* const stage = stages + slice % kStages * S::kStage;
#pragma unroll
    for (int d = 0; d < kSlice; d += kStep) {
      uint32_t x[S::kRowSteps][4];
#pragma unroll
      for (int i = 0; i < S::kRowSteps; ++i) load_matrices(stage + x_at + i * kStep * kStride + d, x[i]);
#pragma unroll
      for (int j = 0; j < S::kExpertSteps; j += 2) {
        uint32_t w[4];
        load_matrices(stage + w_at + j * kAcross * kStride + d, w);
#pragma unroll
        for (int i = 0; i < S::kRowSteps; ++i) {
          multiply_add(sum[i][j], x[i], w[0], w[1]);
          multiply_add(sum[i][j + 1], x[i], w[2], w[3]);
        }
      }
    }
  }
  __pipeline_wait_prior(0);
#pragma unroll
  for (int i = 0; i < S::kRowSteps; ++i) {
#pragma unroll
    for (int j = 0; j < S::kExpertSteps; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t r = first_row + row + i * kStep + lane / 4 + k / 2 * 8;
        const int64_t e = first_expert + expert + j * kAcross + lane % 4 * 2 + k % 2;
        if (r < a.rows && e < a.experts) a.logits[r * a.experts + e] = sum[i][j][k];
      }
    }
  }
}

template <int E, int N>
void launch_tensor(const Product<bf16>& a) {
  constexpr size_t kBytes = Tiles<E>::kBytes;
  check(cudaFuncSetAttribute(tensor_kernel<E, N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kBytes)),
        "cudaFuncSetAttribute");
  const dim3 blocks(blocks_for(a.experts, E), blocks_for(a.rows, kRows));
  tensor_kernel<E, N><<<blocks, kThreads, kBytes, current_stream().native()>>>(a);
}

}  // namespace

Tensor router_logits(const Tensor& x, const Tensor& w) {
  const Shape shape = {x.rows(), w.rows()};
  return visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const Tensor logits = Tensor::empty(shape, dtype_of<A>, x.device());
    if (logits.numel() == 0) return logits;
    const Product<T> a = {.x = x.device_data<T>(),
                          .w = w.device_data<T>(),
                          .logits = logits.device_data<A>(),
                          .rows = x.rows(),
                          .width = x.dim(1),
                          .experts = w.rows()};
    if constexpr (std::is_same_v<T, bf16>) {
      with_pack<T>(a.width, {&x, &w},
                   [&](auto n) { a.experts > 64 ? launch_tensor<128, n>(a) : launch_tensor<64, n>(a); });
    } else {
      const dim3 blocks(blocks_for(a.experts, kTile), blocks_for(a.rows, kTile));
      plain_kernel<<<blocks, kPlainThreads, 0, current_stream().native()>>>(a);
    }
    check_launch("router_logits");
    return logits;
  });
}

}  // namespace phalanx::cuda
