#include "phalanx/ops/adamw_factors.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

// G: of the gradient; M: of the moments. narrow: null, or where the rounded weights go.
template <class T, class G, class M>
struct AdamW {
  T* w;
  M* m;
  M* v;
  const G* g;
  bf16* narrow;
  int64_t count;
  AdamWFactors<T> f;
};

// w ← w·(1 − lr·decay) − lr/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps), in one pass over all arrays.
template <class T, class G, class M, int N>
__global__ void adamw(AdamW<T, G, M> a) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  const auto update = [&](T& w, M& m, M& v, G gradient) {
    const T g = static_cast<T>(widen(gradient));
    const T scaled = g * a.f.scale;
    const T mean = fma(a.f.beta1, static_cast<T>(widen(m)), a.f.rest1 * g);
    const T variance = fma(a.f.beta2, static_cast<T>(widen(v)), a.f.rest2 * scaled * scaled);
    w = fma(w, a.f.decay, -(a.f.rate * mean / fma(sqrt(variance), a.f.correction, a.f.eps)));
    m = narrow<M>(mean);
    v = narrow<M>(variance);
  };
  if (i + N <= a.count) {
    auto w = load<T, N>(a.w + i);
    auto m = load<M, N>(a.m + i);
    auto v = load<M, N>(a.v + i);
    const auto g = load<G, N>(a.g + i);
    Pack<bf16, N> rounded;
    for (int k = 0; k < N; ++k) {
      update(w.v[k], m.v[k], v.v[k], g.v[k]);
      rounded.v[k] = narrow<bf16>(static_cast<float>(w.v[k]));
    }
    store(a.w + i, w);
    store(a.m + i, m);
    store(a.v + i, v);
    if (a.narrow) store(a.narrow + i, rounded);
  } else {
    for (int64_t j = i; j < a.count; ++j) {
      update(a.w[j], a.m[j], a.v[j], a.g[j]);
      if (a.narrow) a.narrow[j] = narrow<bf16>(static_cast<float>(a.w[j]));
    }
  }
}

template <class T, class G, class M>
void adamw(const AdamWTensors& x, const AdamWFactors<T>& factors) {
  const AdamW<T, G, M> arguments = {.w = x.w.device_data<T>(),
                                    .m = x.m.device_data<M>(),
                                    .v = x.v.device_data<M>(),
                                    .g = x.g.device_data<G>(),
                                    .narrow = x.narrow.defined() ? x.narrow.device_data<bf16>() : nullptr,
                                    .count = x.w.numel(),
                                    .f = factors};
  const Tensor& narrow = x.narrow.defined() ? x.narrow : x.w;
  with_pack<T>(0, {&x.w, &x.m, &x.v, &x.g, &narrow}, [&](auto n) {
    const unsigned blocks = blocks_for(x.w.numel(), int64_t{kThreads} * n);
    adamw<T, G, M, n><<<blocks, kThreads, 0, current_stream().native()>>>(arguments);
  });
}

template <class G>
void adamw_f32(const AdamWTensors& x, const AdamWFactors<float>& factors) {
  if (x.m.dtype() == DType::bf16) return adamw<float, G, bf16>(x, factors);
  adamw<float, G, float>(x, factors);
}

struct Descend {
  double rate;
  template <class A>
  __device__ A operator()(A w, A g) const {
    return fma(-static_cast<A>(rate), g, w);
  }
};

}  // namespace

void adamw_into(const AdamWTensors& x, double gradient_scale, const AdamWStep& step) {
  if (x.w.numel() == 0) return;
  if (x.w.dtype() == DType::f64) {
    adamw<double, double, double>(x, AdamWFactors<double>(step, gradient_scale));
  } else if (x.g.dtype() == DType::bf16) {
    adamw_f32<bf16>(x, AdamWFactors<float>(step, gradient_scale));
  } else {
    adamw_f32<float>(x, AdamWFactors<float>(step, gradient_scale));
  }
  check_launch("adamw_into");
}

void sgd_into(const Tensor& w, const Tensor& g, double gradient_scale, double lr) {
  elementwise("sgd_into", Descend{lr * gradient_scale}, w, w, g);
}

}  // namespace phalanx::cuda
