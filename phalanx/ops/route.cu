#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/expert_rows.cuh"

namespace phalanx::cuda {
namespace {

// Experts that a lane can hold in registers.
constexpr int kMostOfLane = 32;

// Scores as integers in the same order, above 0: the key of what may not be chosen. Zeros of both signs are
// equal, and NaN stands behind all scores.
__device__ uint32_t key_of(float score) {
  if (score == 0) score = 0;
  if (isnan(score)) score = std::numeric_limits<float>::lowest();
  const uint32_t bits = __float_as_uint(score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ uint64_t key_of(double score) {
  if (score == 0) score = 0;
  if (isnan(score)) score = std::numeric_limits<double>::lowest();
  const auto bits = static_cast<uint64_t>(__double_as_longlong(score));
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}
template <class T>
using Key = decltype(key_of(T{}));

__device__ uint32_t max_key(uint32_t key) { return __reduce_max_sync(~0u, key); }
__device__ uint64_t max_key(uint64_t key) { return warp_max(key); }

template <class T>
struct Arguments {
  const T* logits;
  const T* bias;  // or null
  T* scores;
  T* weights;
  int64_t* idx;
  int64_t rows;
  int experts;
  int top_k;
  int groups;
  int top_groups;  // as many as groups: none are kept out
  Scores kind;
  bool normalise;
  T scaling;
};

// A row's part of shared memory.
template <class T>
struct RowScratch {
  T* row;       // [experts]
  T* sums;      // [groups]
  int* kept;    // [groups]
  int* chosen;  // [top_k]

  static constexpr size_t bytes(int experts, int groups, int top_k) {
    const size_t all =
        static_cast<size_t>(experts + groups) * sizeof(T) + static_cast<size_t>(groups + top_k) * sizeof(int);
    return (all + 7) / 8 * 8;
  }
  __device__ RowScratch(unsigned char* memory, const Arguments<T>& a)
      : row(reinterpret_cast<T*>(memory)),
        sums(row + a.experts),
        kept(reinterpret_cast<int*>(sums + a.groups)),
        chosen(kept + a.groups) {}
};

// Within two units of the last place, at a third of the division's price.
__device__ float quotient(float a, float b) { return __fdividef(a, b); }
__device__ double quotient(double a, double b) { return a / b; }

template <class T, int P>
__device__ void score_row(const T* logits, int experts, Scores kind, T (&s)[P]) {
  constexpr T kNone = -std::numeric_limits<T>::infinity();
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int e = p * kWarp + static_cast<int>(threadIdx.x);
    s[p] = e < experts ? logits[e] : kNone;
  }
  if (kind == Scores::sigmoid) {
#pragma unroll
    for (int p = 0; p < P; ++p) s[p] = quotient(T{1}, T{1} + exp(-s[p]));
    return;
  }
  T max = kNone;
#pragma unroll
  for (int p = 0; p < P; ++p) max = s[p] > max ? s[p] : max;
  max = warp_max(max);
  T sum = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int e = p * kWarp + static_cast<int>(threadIdx.x);
    if (e < experts) sum += s[p] = exp(s[p] - max);
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int p = 0; p < P; ++p) s[p] = quotient(s[p], sum);
}

// What is behind all that may be chosen.
template <class T>
constexpr T kTaken = -std::numeric_limits<T>::infinity();

// The two largest of some scores.
template <class T>
struct BestTwo {
  T best = kTaken<T>;
  T second = kTaken<T>;

  __device__ void add(T score) {
    const T lower = score < best ? score : best;
    second = lower > second ? lower : second;
    best = score > best ? score : best;
  }
  __device__ T sum(bool both) const {
    const T all = both ? best + second : best;
    return all > std::numeric_limits<T>::lowest() ? all : std::numeric_limits<T>::lowest();
  }
};

// Leaves the best groups alone to choose from, of the row's scores (with the bias) in scratch.
template <class T>
__device__ void keep_best_groups(const Arguments<T>& a, const RowScratch<T>& mine) {
  const int size = a.experts / a.groups;
  const int lane = static_cast<int>(threadIdx.x);
  // Lanes that share a group, neighbours; together they look at neighbours of the row.
  const int sharers = kWarp % a.groups == 0 ? kWarp / a.groups : 1;
  for (int first = 0; first < a.groups; first += kWarp / sharers) {
    const int g = first + lane / sharers;
    BestTwo<T> two;
    if (g < a.groups) {
      const int shift = g * sharers % size;  // groups begin elsewhere, so that their lanes read other banks
      for (int i = lane % sharers; i < size; i += sharers) {
        const int e = i + shift < size ? i + shift : i + shift - size;
        const T s = mine.row[g * size + e];
        two.add(isnan(s) ? std::numeric_limits<T>::lowest() : s);
      }
    }
    for (int step = sharers / 2; step > 0; step /= 2) {
      const T best = __shfl_xor_sync(~0u, two.best, step);
      const T second = __shfl_xor_sync(~0u, two.second, step);
      two.add(best);
      two.add(second);
    }
    if (g < a.groups && lane % sharers == 0) mine.sums[g] = two.sum(size > 1);
  }
  __syncwarp();
  for (int g = lane; g < a.groups; g += kWarp) {
    int better = 0;
    for (int other = 0; other < a.groups; ++other) {
      better += mine.sums[other] > mine.sums[g] || (mine.sums[other] == mine.sums[g] && other < g) ? 1 : 0;
    }
    mine.kept[g] = better < a.top_groups ? 1 : 0;
  }
  __syncwarp();
  for (int g = 0; g < a.groups; ++g) {
    if (mine.kept[g] != 0) continue;
    for (int e = lane; e < size; e += kWarp) mine.row[g * size + e] = kTaken<T>;
  }
  __syncwarp();
}

// Takes the largest, ties to the lower expert.
template <class K, int P>
__device__ int take_best(K (&keys)[P]) {
  K best = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) best = keys[p] > best ? keys[p] : best;
  best = max_key(best);
  unsigned expert = ~0u;
#pragma unroll
  for (int p = P; p-- > 0;) expert = keys[p] == best ? p * kWarp + threadIdx.x : expert;
  expert = __reduce_min_sync(~0u, expert);
#pragma unroll
  for (int p = 0; p < P; ++p) keys[p] = p * kWarp + threadIdx.x == expert ? K{0} : keys[p];
  return static_cast<int>(expert);
}

template <class T, int P>
__global__ void forward(Arguments<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t r = expert_row();
  if (r >= a.rows) return;  // a whole warp
  const int lane = static_cast<int>(threadIdx.x);
  const RowScratch<T> mine(shared + threadIdx.y * RowScratch<T>::bytes(a.experts, a.groups, a.top_k), a);
  T s[P];
  Key<T> keys[P];
  score_row(a.logits + r * a.experts, a.experts, a.kind, s);
  const bool grouped = a.top_groups < a.groups;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int e = p * kWarp + lane;
    keys[p] = 0;
    if (e >= a.experts) continue;
    const T biased = a.bias ? s[p] + a.bias[e] : s[p];
    keys[p] = key_of(biased);
    a.scores[r * a.experts + e] = s[p];
    mine.row[e] = grouped ? biased : s[p];
  }
  __syncwarp();
  if (grouped) {
    keep_best_groups(a, mine);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int e = p * kWarp + lane;
      if (e >= a.experts) continue;
      if (mine.row[e] == kTaken<T>) keys[p] = 0;
      mine.row[e] = s[p];
    }
    __syncwarp();
  }
  T sum = static_cast<T>(kTinyScore);
  for (int i = 0; i < a.top_k; ++i) {
    const int e = take_best(keys);
    sum += mine.row[e];
    if (lane == 0) mine.chosen[i] = e;
  }
  __syncwarp();
  const T factor = a.scaling / (a.normalise ? sum : T{1});
  for (int i = lane; i < a.top_k; i += kWarp) {
    const int e = mine.chosen[i];
    a.idx[r * a.top_k + i] = e;
    a.weights[r * a.top_k + i] = mine.row[e] * factor;
  }
}

template <class T>
struct BackwardArguments {
  const T* dweights;
  const T* dscores;  // or null
  const T* scores;
  const T* weights;
  const int64_t* idx;
  T* dlogits;
  int64_t rows;
  int experts;
  int top_k;
  Scores kind;
  bool normalise;
  T scaling;
};

// With s the sum of the chosen scores and w_i = c·p_i/s: dp_i = (c·dw_i − Σ_j dw_j·w_j) / s. The gradient of
// the scores is put together in shared memory.
template <class T>
__global__ void backward(BackwardArguments<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t r = expert_row();
  if (r >= a.rows) return;
  const int lane = static_cast<int>(threadIdx.x);
  T* const grad = reinterpret_cast<T*>(shared) + threadIdx.y * a.experts;
  const T* const scores = a.scores + r * a.experts;
  for (int e = lane; e < a.experts; e += kWarp) grad[e] = a.dscores ? a.dscores[r * a.experts + e] : T{0};
  T chosen = 0;
  T dot = 0;
  for (int64_t i = r * a.top_k + lane; i < (r + 1) * a.top_k; i += kWarp) {
    chosen += scores[a.idx[i]];
    dot = fma(a.dweights[i], a.weights[i], dot);
  }
  const T sum = static_cast<T>(kTinyScore) + warp_sum(chosen);
  dot = warp_sum(dot);
  for (int64_t i = r * a.top_k + lane; i < (r + 1) * a.top_k; i += kWarp) {
    const T scaled = a.scaling * a.dweights[i];
    grad[a.idx[i]] += a.normalise ? (scaled - dot) / sum : scaled;
  }
  __syncwarp();
  T* const out = a.dlogits + r * a.experts;
  if (a.kind == Scores::sigmoid) {
    for (int e = lane; e < a.experts; e += kWarp) out[e] = grad[e] * (scores[e] * (T{1} - scores[e]));
    return;
  }
  T mean = 0;
  for (int e = lane; e < a.experts; e += kWarp) mean = fma(grad[e], scores[e], mean);
  mean = warp_sum(mean);
  for (int e = lane; e < a.experts; e += kWarp) out[e] = scores[e] * (grad[e] - mean);
}

// Rows of a block, so that their shared memory is there without asking for more.
unsigned rows_of_block(size_t row_bytes) {
  constexpr size_t kShared = size_t{48} << 10;
  return static_cast<unsigned>(std::clamp<size_t>(kShared / row_bytes, 1, kRowsOfBlock));
}

// Calls f(integral_constant P) with the experts of a lane.
template <class F>
void with_experts_of_lane(int64_t experts, F&& f) {
  const int64_t each = (experts + kWarp - 1) / kWarp;
  PHX_CHECK(each <= kMostOfLane, "a router of {} experts on a GPU, which has {} at most", experts,
            kMostOfLane * kWarp);
  if (each <= 2) return f(std::integral_constant<int, 2>());
  if (each <= 4) return f(std::integral_constant<int, 4>());
  if (each <= 8) return f(std::integral_constant<int, 8>());
  f(std::integral_constant<int, kMostOfLane>());
}

}  // namespace

Routing route(const Tensor& logits, const RoutingConfig& config, const Tensor& bias) {
  const int64_t k = config.top_k;
  const Routing out = {Tensor::empty({logits.rows(), k}, DType::i64, logits.device()),
                       Tensor::empty({logits.rows(), k}, logits.dtype(), logits.device()),
                       Tensor::empty(logits.shape(), logits.dtype(), logits.device())};
  if (logits.rows() == 0) return out;
  visit_float(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const Arguments<T> a = {.logits = logits.device_data<T>(),
                            .bias = bias.defined() ? bias.device_data<T>() : nullptr,
                            .scores = out.scores_TE.device_data<T>(),
                            .weights = out.weights_TK.device_data<T>(),
                            .idx = out.topk_idx_TK.device_data<int64_t>(),
                            .rows = logits.rows(),
                            .experts = static_cast<int>(logits.dim(1)),
                            .top_k = config.top_k,
                            .groups = config.groups,
                            .top_groups = config.top_groups,
                            .kind = config.scores,
                            .normalise = config.normalise,
                            .scaling = static_cast<T>(config.scaling)};
    const size_t bytes = RowScratch<T>::bytes(a.experts, a.groups, a.top_k);
    with_experts_of_lane(a.experts, [&](auto p) {
      const unsigned rows = rows_of_block(bytes);
      forward<T, p>
          <<<blocks_for(a.rows, rows), dim3(kWarp, rows), rows * bytes, current_stream().native()>>>(a);
    });
    check_launch("route");
  });
  return out;
}

Tensor route_backward(const Tensor& dweights, const Tensor& dscores, const Routing& routing,
                      const RoutingConfig& config) {
  const Tensor& scores = routing.scores_TE;
  const Tensor dlogits = Tensor::empty(scores.shape(), scores.dtype(), scores.device());
  if (dlogits.numel() == 0) return dlogits;
  visit_float(scores.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const BackwardArguments<T> a = {.dweights = dweights.device_data<T>(),
                                    .dscores = dscores.defined() ? dscores.device_data<T>() : nullptr,
                                    .scores = scores.device_data<T>(),
                                    .weights = routing.weights_TK.device_data<T>(),
                                    .idx = routing.topk_idx_TK.device_data<int64_t>(),
                                    .dlogits = dlogits.device_data<T>(),
                                    .rows = scores.rows(),
                                    .experts = static_cast<int>(scores.dim(1)),
                                    .top_k = static_cast<int>(dweights.dim(1)),
                                    .kind = config.scores,
                                    .normalise = config.normalise,
                                    .scaling = static_cast<T>(config.scaling)};
    const size_t bytes = static_cast<size_t>(a.experts) * sizeof(T);
    const unsigned rows = rows_of_block(bytes);
    backward<T><<<blocks_for(a.rows, rows), dim3(kWarp, rows), rows * bytes, current_stream().native()>>>(a);
    check_launch("route_backward");
  });
  return dlogits;
}

}  // namespace phalanx::cuda
