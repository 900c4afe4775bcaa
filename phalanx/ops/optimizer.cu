#include <cmath>

#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

// One AdamW update, in the arithmetic of the parameters.
template <class T>
struct AdamW {
  T* w;
  T* m;
  T* v;
  const T* g;
  int64_t count;
  T beta1, beta2, rest1, rest2, scale, decay, rate, correction, eps;
};

// w ← w·(1 − lr·decay) − lr/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps), in one pass over the four arrays.
template <class T, int N>
__global__ void adamw(AdamW<T> a) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  const auto update = [&](T& w, T& m, T& v, T g) {
    const T scaled = g * a.scale;
    m = fma(a.beta1, m, a.rest1 * g);
    v = fma(a.beta2, v, a.rest2 * scaled * scaled);
    w = fma(w, a.decay, -(a.rate * m / fma(sqrt(v), a.correction, a.eps)));
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
    const auto step = static_cast<double>(s.step);
    const AdamW<T> arguments = {.w = w.device_data<T>(),
                                .m = m.device_data<T>(),
                                .v = v.device_data<T>(),
                                .g = g.device_data<T>(),
                                .count = w.numel(),
                                .beta1 = static_cast<T>(s.beta1),
                                .beta2 = static_cast<T>(s.beta2),
                                .rest1 = static_cast<T>((1 - s.beta1) * gradient_scale),
                                .rest2 = static_cast<T>(1 - s.beta2),
                                .scale = static_cast<T>(gradient_scale),
                                .decay = static_cast<T>(1 - s.lr * s.weight_decay),
                                .rate = static_cast<T>(s.lr / (1 - std::pow(s.beta1, step))),
                                .correction = static_cast<T>(1 / std::sqrt(1 - std::pow(s.beta2, step))),
                                .eps = static_cast<T>(s.eps)};
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
