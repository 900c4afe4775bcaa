#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/rope.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAngles = 1024;         // of a block
constexpr int kPacks = 4 * kThreads;  // that a block turns, if its rows have so few

template <class T>
struct Arguments {
  T* x;
  const int32_t* positions;
  int64_t rows;
  int64_t width;
  int64_t head_dim;
  int rows_a_block;
  Fault* fault;
};

// A block has some rows: their angles are computed once for all heads. N pairs a thread at once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) rotate(Arguments<T> a, Turns turns) {
  using A = Arithmetic<T>;
  alignas(16) __shared__ A cosines[kAngles];
  alignas(16) __shared__ A sines[kAngles];
  const int64_t first = int64_t{blockIdx.x} * a.rows_a_block;
  const int rows = static_cast<int>(min(static_cast<int64_t>(a.rows_a_block), a.rows - first));
  for (int i = static_cast<int>(threadIdx.x); i < rows * turns.pairs; i += kThreads) {
    const int32_t position = a.positions[first + i / turns.pairs];
    if (position < 0) report(a.fault, FaultKind::position, position, 0);
    turns.angle(position, i % turns.pairs, cosines[i], sines[i]);
  }
  __syncthreads();
  const int packs = turns.pairs / N;
  const int of_row = static_cast<int>(a.width / a.head_dim) * packs;
  for (int j = static_cast<int>(threadIdx.x); j < rows * of_row; j += kThreads) {
    const int r = j / of_row;
    const int in_row = j % of_row;
    const int i = in_row % packs * N;
    const auto cosine = load<A, N>(cosines + r * turns.pairs + i);
    const auto sine = load<A, N>(sines + r * turns.pairs + i);
    const int64_t head = in_row / packs;
    T* const low = a.x + (first + r) * a.width + (head + 1) * a.head_dim - 2 * turns.pairs + i;
    T* const high = low + turns.pairs;
    auto x = load<T, N>(low);
    auto y = load<T, N>(high);
    for (int k = 0; k < N; ++k) {
      const A xk = widen(x.v[k]);
      const A yk = widen(y.v[k]);
      x.v[k] = narrow<T>(fma(-yk, sine.v[k], xk * cosine.v[k]));
      y.v[k] = narrow<T>(fma(xk, sine.v[k], yk * cosine.v[k]));
    }
    store(low, x);
    store(high, y);
  }
}

}  // namespace

void rope_into(const Tensor& x, const Tensor& positions, int64_t head_dim, const Rotation& rotation,
               double direction) {
  if (x.numel() == 0) return;
  const Turns turns(rotation, direction);
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    Stream& stream = current_stream();
    // Heads, and their halves that turn, begin where packs may.
    constexpr int kFull = 16 / sizeof(T);
    const bool whole = turns.pairs % kFull == 0 && head_dim % kFull == 0;
    with_pack<T>(whole ? x.dim(1) : 1, {&x}, [&](auto n) {
      const int64_t packs = std::max<int64_t>(1, x.dim(1) / head_dim * turns.pairs / n);
      const int64_t rows = std::clamp<int64_t>(kPacks / packs, 1, kAngles / std::max(1, turns.pairs));
      const Arguments<T> arguments = {.x = x.device_data<T>(),
                                      .positions = positions.device_data<int32_t>(),
                                      .rows = x.rows(),
                                      .width = x.dim(1),
                                      .head_dim = head_dim,
                                      .rows_a_block = static_cast<int>(rows),
                                      .fault = stream.fault()};
      rotate<T, n><<<blocks_for(x.rows(), rows), kThreads, 0, stream.native()>>>(arguments, turns);
    });
  });
  check_launch("rope");
}

}  // namespace phalanx::cuda
