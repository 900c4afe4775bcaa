#include "phalanx/ops/adamw_factors.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.cuh"
#include "phalanx/ops/philox.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

// G: of the gradient; M: of the moments.
template <class T, class G, class M>
struct AdamW {
  M* m;
  M* v;
  const G* g;
  int64_t count;
  AdamWFactors<T> f;

  AdamW(const AdamWTensors& x, const AdamWFactors<T>& factors)
      : m(x.m.device_data<M>()),
        v(x.v.device_data<M>()),
        g(x.g.device_data<G>()),
        count(x.w.numel()),
        f(factors) {}

  // w ← w·(1 − lr·decay) − lr/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps), in one pass over all arrays: of N
  // elements from i on; the moments are stored, the weights given back.
  template <int N>
  __device__ void update(int64_t i, Pack<T, N>& w) const {
    auto mean = load<M, N>(m + i);
    auto variance = load<M, N>(v + i);
    const auto gradient = load<G, N>(g + i);
    for (int k = 0; k < N; ++k) {
      const T g_k = static_cast<T>(widen(gradient.v[k]));
      const T scaled = g_k * f.scale;
      const T m_k = fma(f.beta1, static_cast<T>(widen(mean.v[k])), f.rest1 * g_k);
      const T v_k = fma(f.beta2, static_cast<T>(widen(variance.v[k])), f.rest2 * scaled * scaled);
      w.v[k] = fma(w.v[k], f.decay, -(f.rate * m_k / fma(sqrt(v_k), f.correction, f.eps)));
      mean.v[k] = narrow<M>(m_k);
      variance.v[k] = narrow<M>(v_k);
    }
    store(m + i, mean);
    store(v + i, variance);
  }
};

// `rounded`: null, or where the rounded weights go.
template <class T, class G, class M, int N>
__global__ void adamw(AdamW<T, G, M> a, T* weights, bf16* rounded) {
  const auto update = [&](auto n, int64_t i) {
    auto w = load<T, n>(weights + i);
    a.template update<n>(i, w);
    store(weights + i, w);
    if (rounded == nullptr) return;
    Pack<bf16, n> narrowed;
    for (int k = 0; k < n; ++k) narrowed.v[k] = narrow<bf16>(static_cast<float>(w.v[k]));
    store(rounded + i, narrowed);
  };
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i + N <= a.count) {
    update(std::integral_constant<int, N>(), i);
  } else {
    for (int64_t j = i; j < a.count; ++j) update(std::integral_constant<int, 1>(), j);
  }
}

template <class T, class G, class M>
void adamw(const AdamWTensors& x, const AdamWFactors<T>& factors) {
  T* const weights = x.w.device_data<T>();
  bf16* const rounded = x.narrow.defined() ? x.narrow.device_data<bf16>() : nullptr;
  const Tensor& narrow = x.narrow.defined() ? x.narrow : x.w;
  with_pack<T>(0, {&x.w, &x.m, &x.v, &x.g, &narrow}, [&](auto n) {
    const unsigned blocks = blocks_for(x.w.numel(), int64_t{kThreads} * n);
    adamw<T, G, M, n>
        <<<blocks, kThreads, 0, current_stream().native()>>>(AdamW<T, G, M>(x, factors), weights, rounded);
  });
}

// As StochasticRounding says.
struct Rounding {
  uint64_t key;
  uint64_t step;
  int64_t first;
  int64_t columns;
  int64_t row_step;
};

// Away from zero if the bits that are cut off and the upper half of `random` carry; NaN stays NaN.
__device__ bf16 round_to_neighbour(float x, uint32_t random) {
  const uint32_t bits = __float_as_uint(x);
  return {static_cast<uint16_t>((isnan(x) ? bits | 0x400000u : bits + (random >> 16)) >> 16)};
}

// N elements a thread: those of a whole counter (4), or one.
template <class G, class M, int N>
__global__ void adamw_rounding(AdamW<float, G, M> a, bf16* weights, Rounding r) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= a.count) return;
  const int64_t row = i / r.columns;
  const auto index = static_cast<uint64_t>(r.first + row * r.row_step + (i - row * r.columns));
  const PhiloxWords draws = philox_words(r.key, index / kPhiloxWords, r.step);
  auto w = load<bf16, N>(weights + i);
  Pack<float, N> wide;
  for (int k = 0; k < N; ++k) wide.v[k] = widen(w.v[k]);
  a.template update<N>(i, wide);
  for (int k = 0; k < N; ++k) {
    w.v[k] = round_to_neighbour(wide.v[k], draws.v[N == kPhiloxWords ? k : index % kPhiloxWords]);
  }
  store(weights + i, w);
}

// True if packs of kPhiloxWords elements are those of one counter each, and of one row.
bool whole_counters(const AdamWTensors& x, const StochasticRounding& r) {
  const auto fits = [](int64_t n) { return n % kPhiloxWords == 0; };
  return fits(x.w.numel()) && fits(r.first) && fits(r.columns) && fits(r.row_step);
}

template <class G, class M>
void adamw_rounding(const AdamWTensors& x, const AdamWFactors<float>& factors, const StochasticRounding& r) {
  const Rounding rounding = {
      .key = r.stream.key(), .step = r.step, .first = r.first, .columns = r.columns, .row_step = r.row_step};
  bf16* const weights = x.w.device_data<bf16>();
  with_pack<float>(whole_counters(x, r) ? 0 : 1, {&x.w, &x.m, &x.v, &x.g}, [&](auto n) {
    const unsigned blocks = blocks_for(x.w.numel(), int64_t{kThreads} * n);
    adamw_rounding<G, M, n><<<blocks, kThreads, 0, current_stream().native()>>>(
        AdamW<float, G, M>(x, factors), weights, rounding);
  });
}

// f(G(), M()) with what elements of the gradient and of the moments are, beside arithmetic in f32.
template <class F>
void visit_f32(const AdamWTensors& x, F&& f) {
  visit_sum<bf16>(x.g.dtype(), [&](auto g) { visit_sum<bf16>(x.m.dtype(), [&](auto m) { f(g, m); }); });
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
  } else {
    visit_f32(x, [&](auto g, auto m) {
      adamw<float, decltype(g), decltype(m)>(x, AdamWFactors<float>(step, gradient_scale));
    });
  }
  check_launch("adamw_into");
}

void adamw_into(const AdamWTensors& x, double gradient_scale, const AdamWStep& step,
                const StochasticRounding& rounding) {
  if (x.w.numel() == 0) return;
  visit_f32(x, [&](auto g, auto m) {
    adamw_rounding<decltype(g), decltype(m)>(x, AdamWFactors<float>(step, gradient_scale), rounding);
  });
  check_launch("adamw_into");
}

void sgd_into(const Tensor& w, const Tensor& g, double gradient_scale, double lr) {
  elementwise("sgd_into", Descend{lr * gradient_scale}, w, w, g);
}

}  // namespace phalanx::cuda
