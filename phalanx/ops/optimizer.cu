#include "phalanx/ops/adamw_factors.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

// G: of the gradient. narrow: null, or where the rounded weights go.
template <class T, class G>
struct AdamW {
  T* w;
  T* m;
  T* v;
  const G* g;
  bf16* narrow;
  int64_t count;
  AdamWFactors<T> f;
};

// w ← w·(1 − lr·decay) − lr/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps), in one pass over all arrays.
template <class T, class G, int N>
__global__ void adamw(AdamW<T, G> a) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  const auto update = [&](T& w, T& m, T& v, G gradient) {
    const T g = static_cast<T>(widen(gradient));
    const T scaled = g * a.f.scale;
    m = fma(a.f.beta1, m, a.f.rest1 * g);
    v = fma(a.f.beta2, v, a.f.rest2 * scaled * scaled);
    w = fma(w, a.f.decay, -(a.f.rate * m / fma(sqrt(v), a.f.correction, a.f.eps)));
  };
  if (i + N <= a.count) {
    auto w = load<T, N>(a.w + i);
    auto m = load<T, N>(a.m + i);
    auto v = load<T, N>(a.v + i);
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

template <class T, class G>
void adamw(const AdamWTensors& x, const AdamWFactors<T>& factors) {
  const AdamW<T, G> arguments = {.w = x.w.device_data<T>(),
                                 .m = x.m.device_data<T>(),
                                 .v = x.v.device_data<T>(),
                                 .g = x.g.device_data<G>(),
                                 .narrow = x.narrow.defined() ? x.narrow.device_data<bf16>() : nullptr,
                                 .count = x.w.numel(),
                                 .f = factors};
  const Tensor& narrow = x.narrow.defined() ? x.narrow : x.w;
  with_pack<T>(0, {&x.w, &x.m, &x.v, &x.g, &narrow}, [&](auto n) {
    const unsigned blocks = blocks_for(x.w.numel(), int64_t{kThreads} * n);
    adamw<T, G, n><<<blocks, kThreads, 0, current_stream().native()>>>(arguments);
  });
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
    adamw<double, double>(x, AdamWFactors<double>(step, gradient_scale));
  } else if (x.g.dtype() == DType::bf16) {
    adamw<float, bf16>(x, AdamWFactors<float>(step, gradient_scale));
  } else {
    adamw<float, float>(x, AdamWFactors<float>(step, gradient_scale));
  }
  check_launch("adamw_into");
}

void sgd_into(const Tensor& w, const Tensor& g, double gradient_scale, double lr) {
  elementwise("sgd_into", Descend{lr * gradient_scale}, w, w, g);
}

}  // namespace phalanx::cuda
