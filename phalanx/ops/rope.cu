#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

constexpr int kMostPairs = 256;  // of a head: what fits a kernel's arguments
constexpr int kThreads = 256;

struct Turns {
  double frequencies[kMostPairs];
  double factor;
  double direction;  // 1 forth, −1 back
  int pairs;
};

template <class T>
struct Arguments {
  T* x;
  const int32_t* positions;
  int64_t width;
  int64_t head_dim;
  Fault* fault;
};

__device__ void sine_and_cosine(double angle, double& sine, double& cosine) { sincos(angle, &sine, &cosine); }
// The whole turns are taken off in f64.
__device__ void sine_and_cosine(double angle, float& sine, float& cosine) {
  constexpr double kTurn = 6.283185307179586477;
  sincosf(static_cast<float>(fma(-rint(angle / kTurn), kTurn, angle)), &sine, &cosine);
}

// A block a row: angles are computed once for all its heads. N pairs a thread at once.
template <class T, int N>
__global__ void rotate(Arguments<T> a, Turns turns) {
  using A = Arithmetic<T>;
  __shared__ A cosines[kMostPairs];
  __shared__ A sines[kMostPairs];
  const int64_t r = blockIdx.x;
  const int32_t position = a.positions[r];
  if (position < 0) {
    if (threadIdx.x == 0) report(a.fault, FaultKind::position, position, 0);
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < turns.pairs; i += kThreads) {
    A sine = 0;
    A cosine = 0;
    sine_and_cosine(static_cast<double>(position) * turns.frequencies[i], sine, cosine);
    cosines[i] = static_cast<A>(turns.factor) * cosine;
    sines[i] = static_cast<A>(turns.factor * turns.direction) * sine;
  }
  __syncthreads();
  const int packs = turns.pairs / N;
  const int count = static_cast<int>(a.width / a.head_dim) * packs;
  for (int j = static_cast<int>(threadIdx.x); j < count; j += kThreads) {
    const int i = j % packs * N;
    T* const low = a.x + r * a.width + (j / packs + 1) * a.head_dim - 2 * turns.pairs + i;
    T* const high = low + turns.pairs;
    auto x = load<T, N>(low);
    auto y = load<T, N>(high);
    for (int k = 0; k < N; ++k) {
      const A xk = widen(x.v[k]);
      const A yk = widen(y.v[k]);
      x.v[k] = narrow<T>(fma(-yk, sines[i + k], xk * cosines[i + k]));
      y.v[k] = narrow<T>(fma(xk, sines[i + k], yk * cosines[i + k]));
    }
    store(low, x);
    store(high, y);
  }
}

}  // namespace

void rope_into(const Tensor& x, const Tensor& positions, int64_t head_dim, const Rotation& rotation,
               double direction) {
  if (x.numel() == 0) return;
  Turns turns = {.frequencies = {},
                 .factor = rotation.factor,
                 .direction = direction,
                 .pairs = static_cast<int>(rotation.frequencies.size())};
  PHX_CHECK(turns.pairs <= kMostPairs, "{} pairs turn, a GPU's kernel takes {}", turns.pairs, kMostPairs);
  std::copy(rotation.frequencies.begin(), rotation.frequencies.end(), turns.frequencies);
  visit_stored(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    Stream& stream = current_stream();
    const Arguments<T> arguments = {.x = x.device_data<T>(),
                                    .positions = positions.device_data<int32_t>(),
                                    .width = x.dim(1),
                                    .head_dim = head_dim,
                                    .fault = stream.fault()};
    // Heads, and their halves that turn, begin where packs may.
    constexpr int kFull = 16 / sizeof(T);
    const bool whole = turns.pairs % kFull == 0 && head_dim % kFull == 0;
    with_pack<T>(whole ? x.dim(1) : 1, {&x}, [&](auto n) {
      rotate<T, n><<<static_cast<unsigned>(x.rows()), kThreads, 0, stream.native()>>>(arguments, turns);
    });
  });
  check_launch("rope");
}

}  // namespace phalanx::cuda
