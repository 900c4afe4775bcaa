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

// A block a row: angles are computed once, in f64, for all its heads.
template <class T>
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
    double sine = 0;
    double cosine = 0;
    sincos(static_cast<double>(position) * turns.frequencies[i], &sine, &cosine);
    cosines[i] = static_cast<A>(turns.factor * cosine);
    sines[i] = static_cast<A>(turns.factor * sine) * static_cast<A>(turns.direction);
  }
  __syncthreads();
  const int64_t heads = a.width / a.head_dim;
  for (int64_t j = threadIdx.x; j < heads * turns.pairs; j += kThreads) {
    const int64_t i = j % turns.pairs;
    T* const low = a.x + r * a.width + (j / turns.pairs + 1) * a.head_dim - 2 * turns.pairs + i;
    T* const high = low + turns.pairs;
    const A x = widen(*low);
    const A y = widen(*high);
    *low = narrow<T>(fma(-y, sines[i], x * cosines[i]));
    *high = narrow<T>(fma(x, sines[i], y * cosines[i]));
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
    rotate<T><<<static_cast<unsigned>(x.rows()), kThreads, 0, stream.native()>>>(arguments, turns);
  });
  check_launch("rope");
}

}  // namespace phalanx::cuda
