#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/expert_rows.cuh"
#include "phalanx/ops/sum_parts.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kRows = 64;  // of a block
constexpr unsigned kMostParts = 65535;
constexpr int64_t kMostExperts = 4096;  // for which a block has shared memory

// The sequences on the device, and the blocks for them: sequences along x, parts of one along y.
struct Sequences {
  Tensor offsets;
  int64_t count;
  bool whole;  // every row of `rows` is in one
  dim3 blocks;

  Sequences(const Tensor& on_host, int64_t rows, Device device)
      : offsets(on_host.to(device)), count(on_host.numel() - 1) {
    const auto o = on_host.span<const int64_t>();
    PHX_CHECK(count >= 0 && o.front() >= 0 && o.back() <= rows, "sequences of rows {} to {} of {}", o.front(),
              o.back(), rows);
    whole = o.front() == 0 && o.back() == rows;
    int64_t longest = 1;
    for (size_t b = 0; b + 1 < o.size(); ++b) longest = std::max(longest, o[b + 1] - o[b]);
    blocks = dim3(static_cast<unsigned>(count), std::min(blocks_for(longest, kRows), kMostParts));
  }
};

// Counts are whole numbers, so that atomics give the same sum in any order.
__global__ void count_kernel(const int64_t* idx, const int64_t* offsets, double* counts, int64_t experts,
                             int64_t top_k) {
  extern __shared__ __align__(16) unsigned char shared[];
  int* const mine = reinterpret_cast<int*>(shared);
  const int64_t b = blockIdx.x;
  const int64_t end = offsets[b + 1];
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) mine[e] = 0;
  __syncthreads();
  for (int64_t first = offsets[b] + int64_t{blockIdx.y} * kRows; first < end;
       first += int64_t{gridDim.y} * kRows) {
    const int64_t last = first + kRows < end ? first + kRows : end;
    for (int64_t i = first * top_k + threadIdx.x; i < last * top_k; i += blockDim.x) {
      const int64_t e = idx[i];
      if (e >= 0 && e < experts) atomicAdd(mine + e, 1);
    }
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
    if (mine[e] > 0) atomicAdd(counts + b * experts + e, static_cast<double>(mine[e]));
  }
}

template <class T>
struct Arguments {
  const T* scores;
  const int64_t* offsets;
  const double* counts;
  int64_t experts;
  double* parts;  // of forward: a block's sum
  T* dscores;     // of backward
  double scale;   // of backward
};

// In shared memory, of the block's sequence: slope[e] = E · times e was chosen / (K · n).
__device__ const double* slopes(const double* counts, int64_t experts) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ TeamScratch scratch[1];
  double* const slope = reinterpret_cast<double*>(shared);
  double chosen = 0;
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) chosen += counts[e];
  chosen = team_reduce(chosen, scratch[0], Sum{});
  const double each = static_cast<double>(experts) / (chosen > 1 ? chosen : 1.0);
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) slope[e] = each * counts[e];
  __syncthreads();
  return slope;
}

// A block of kRowsOfBlock warps. What a row adds is Σ_e slope_e · s_e / Σ s.
template <class T, bool kBackward>
__global__ void rows_kernel(Arguments<T> a) {
  __shared__ double losses[kRowsOfBlock];
  const int64_t b = blockIdx.x;
  const double* const slope = slopes(a.counts + b * a.experts, a.experts);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t end = a.offsets[b + 1];
  double loss = 0;
  for (int64_t first = a.offsets[b] + int64_t{blockIdx.y} * kRows; first < end;
       first += int64_t{gridDim.y} * kRows) {
    const int64_t last = first + kRows < end ? first + kRows : end;
    for (int64_t r = first + warp; r < last; r += kRowsOfBlock) {
      const T* const scores = a.scores + r * a.experts;
      double sum = 0;
      double dot = 0;
      for (int64_t e = lane; e < a.experts; e += kWarp) {
        const auto s = static_cast<double>(scores[e]);
        sum += s;
        dot = fma(s, slope[e], dot);
      }
      sum = kTinyScore + warp_sum(sum);
      const double mean = warp_sum(dot) / sum;
      if constexpr (kBackward) {
        const double factor = a.scale / sum;
        for (int64_t e = lane; e < a.experts; e += kWarp) {
          a.dscores[r * a.experts + e] = static_cast<T>(factor * (slope[e] - mean));
        }
      } else {
        loss += mean;
      }
    }
  }
  if constexpr (!kBackward) {
    if (lane == 0) losses[warp] = loss;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < kRowsOfBlock; ++w) loss += losses[w];
    a.parts[int64_t{blockIdx.y} * gridDim.x + b] = loss;
  }
}

template <class T>
Arguments<T> arguments_of(const Routing& routing, const Sequences& sequences, const Tensor& counts_BE) {
  const int64_t experts = routing.scores_TE.dim(1);
  PHX_CHECK((counts_BE.shape() == Shape{sequences.count, experts}), "counts {} of {} sequences",
            counts_BE.shape(), sequences.count);
  PHX_CHECK(experts <= kMostExperts, "a balance loss of {} experts on a GPU, which has {} at most", experts,
            kMostExperts);
  return {.scores = routing.scores_TE.device_data<T>(),
          .offsets = sequences.offsets.device_data<int64_t>(),
          .counts = counts_BE.device_data<double>(),
          .experts = experts,
          .parts = nullptr,
          .dscores = nullptr,
          .scale = 0};
}

template <class T, bool kBackward>
void launch(const Arguments<T>& a, dim3 blocks) {
  rows_kernel<T, kBackward><<<blocks, kRowsOfBlock * kWarp, static_cast<size_t>(a.experts) * sizeof(double),
                              current_stream().native()>>>(a);
}

}  // namespace

Tensor balance_counts(const Routing& routing, const Tensor& offsets) {
  const Tensor& idx = routing.topk_idx_TK;
  const int64_t experts = routing.scores_TE.dim(1);
  const Sequences sequences(offsets, idx.rows(), idx.device());
  const Tensor counts = Tensor::zeros({sequences.count, experts}, DType::f64, idx.device());
  PHX_CHECK(experts <= kMostExperts, "{} experts on a GPU, which counts {} at most", experts, kMostExperts);
  if (counts.numel() == 0) return counts;
  count_kernel<<<sequences.blocks, 256, static_cast<size_t>(experts) * sizeof(int),
                 current_stream().native()>>>(idx.device_data<int64_t>(),
                                              sequences.offsets.device_data<int64_t>(),
                                              counts.device_data<double>(), experts, idx.dim(1));
  check_launch("balance_counts");
  return counts;
}

Tensor balance_loss(const Routing& routing, const Tensor& offsets, const Tensor& counts_BE) {
  const Tensor& scores = routing.scores_TE;
  const Sequences sequences(offsets, scores.rows(), scores.device());
  const auto parts_of = static_cast<int64_t>(sequences.blocks.x) * sequences.blocks.y;
  const Tensor parts = Tensor::empty({parts_of}, DType::f64, scores.device());
  const Tensor sum = Tensor::empty({1}, DType::f64, scores.device());
  visit_float(scores.dtype(), [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> a = arguments_of<T>(routing, sequences, counts_BE);
    a.parts = parts.device_data<double>();
    if (parts_of > 0) launch<T, false>(a, sequences.blocks);
  });
  check_launch("balance_loss");
  sum_parts(parts, sum);
  return sum;
}

Tensor balance_loss_backward(const Routing& routing, const Tensor& offsets, const Tensor& counts_BE,
                             double scale) {
  const Tensor& scores = routing.scores_TE;
  const Sequences sequences(offsets, scores.rows(), scores.device());
  const Tensor dscores = sequences.whole ? Tensor::empty(scores.shape(), scores.dtype(), scores.device())
                                         : Tensor::zeros(scores.shape(), scores.dtype(), scores.device());
  if (dscores.numel() == 0 || sequences.count == 0) return dscores;
  visit_float(scores.dtype(), [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> a = arguments_of<T>(routing, sequences, counts_BE);
    a.dscores = dscores.device_data<T>();
    a.scale = scale;
    launch<T, true>(a, sequences.blocks);
  });
  check_launch("balance_loss_backward");
  return dscores;
}

}  // namespace phalanx::cuda
