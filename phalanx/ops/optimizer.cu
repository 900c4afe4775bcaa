#include "phalanx/ops/adamw_factors.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct AdamW {
  T* w;
  T* m;
  T* v;
  const T* g;
  int64_t count;
  AdamWFactors<T> f;
};

// w ← w·(1 − lr·decay) − lr/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps), in one pass over the four arrays.
template <class T, int N>
__global__ void adamw(AdamW<T> a) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  const auto update = [&](T& w, T& m, T& v, T g) {
    const T scaled = g * a.f.scale;
    m = fma(a.f.beta1, m, a.f.rest1 * g);
    v = fma(a.f.beta2, v, a.f.rest2 * scaled * scaled);
    w = fma(w, a.f.decay, -(a.f.rate * m / fma(sqrt(v), a.f.correction, a.f.eps)));
  };
  if (i + N <= a.count) {
    auto w = load<T, N>(a.w + i);
    auto m = load<T, N>(a.m + i);
    auto v = load<T, N>(a.v + i);
    const auto g = load<T, N>(a.g + i);
    for (int k = 0; k < N; ++k) update(w.v[k], m.v[k], v.v[k], g.v[k]);
    store(a.w + i, w);
    store(a.m + i, m);
    store(a.v + i, v);
  } else {
    for (int64_t j = i; j < a.count; ++j) update(a.w[j], a.m[j], a.v[j], a.g[j]);
  }
}

struct Descend {
  double rate;
  template <class A>
  __device__ A operator()(A w, A g) const {
    return fma(-static_cast<A>(rate), g, w);
  }
};

}  // namespace

void adamw_into(const std::array<Tensor, 4>& w_m_v_g, double gradient_scale, const AdamWStep& s) {
  const auto& [w, m, v, g] = w_m_v_g;
  if (w.numel() == 0) return;
  visit_float(w.dtype(), [&, &w = w, &m = m, &v = v, &g = g](auto zero) {
    using T = decltype(zero);
    const AdamW<T> arguments = {.w = w.device_data<T>(),
                                .m = m.device_data<T>(),
                                .v = v.device_data<T>(),
                                .g = g.device_data<T>(),
                                .count = w.numel(),
                                .f = AdamWFactors<T>(s, gradient_scale)};
    with_pack<T>(0, {&w, &m, &v, &g}, [&](auto n) {
      const unsigned blocks = blocks_for(w.numel(), int64_t{kThreads} * n);
      adamw<T, n><<<blocks, kThreads, 0, current_stream().native()>>>(arguments);
    });
  });
  check_launch("adamw_into");
}

void sgd_into(const Tensor& w, const Tensor& g, double gradient_scale, double lr) {
  elementwise("sgd_into", Descend{lr * gradient_scale}, w, w, g);
}

}  // namespace phalanx::cuda
