#include "phalanx/ops/optimizer.h"

#include <algorithm>

#include "phalanx/base/trace.h"
#include "phalanx/ops/adamw_factors.h"
#include "phalanx/ops/cast.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/optimizer.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/philox-inl.h"
#include "phalanx/ops/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// w ← w·(1 − lr·decay) − lr/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps), in one pass over all arrays.
// Moments: how they are stored.
template <class T, class Moments>
struct AdamW {
  using Stored = typename Moments::Stored;
  Stored* m;
  Stored* v;
  const T* g;
  AdamWFactors<T> f;

  AdamW(const AdamWTensors& x, Moments, const AdamWFactors<T>& factors)
      : m(reinterpret_cast<Stored*>(x.m.raw())),
        v(reinterpret_cast<Stored*>(x.v.raw())),
        g(x.g.data<T>()),
        f(factors) {}

  // Of the elements from i on; the moments are stored, the weights given back.
  template <class At, class D>
  HWY_INLINE hn::Vec<D> update(At at, D d, int64_t i, hn::Vec<D> w) const {
    const auto gi = at.load(d, g + i);
    const auto scaled = hn::Mul(gi, hn::Set(d, f.scale));
    const auto mean =
        hn::MulAdd(hn::Set(d, f.beta1), Moments::load(at, d, m + i), hn::Mul(hn::Set(d, f.rest1), gi));
    const auto square = hn::Mul(hn::Mul(hn::Set(d, f.rest2), scaled), scaled);
    const auto variance = hn::MulAdd(hn::Set(d, f.beta2), Moments::load(at, d, v + i), square);
    const auto root = hn::MulAdd(hn::Sqrt(variance), hn::Set(d, f.correction), hn::Set(d, f.eps));
    const auto step = hn::Div(hn::Mul(hn::Set(d, f.rate), mean), root);
    Moments::store(at, mean, d, m + i);
    Moments::store(at, variance, d, v + i);
    return hn::MulSub(w, hn::Set(d, f.decay), step);
  }
};

template <class T, class Moments>
void adamw(const Tensor& w, const AdamW<T, Moments>& adam) {
  T* const wd = w.data<T>();
  for_blocks<T>(w.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
      at.store(adam.update(at, d, begin + i, at.load(d, wd + begin + i)), d, wd + begin + i);
    });
  });
}

// As many elements of one row at once as draw at once.
template <class Moments>
void adamw_rounding(const Tensor& w, const AdamW<float, Moments>& adam, const StochasticRounding& r) {
  auto* const wd = reinterpret_cast<uint16_t*>(w.raw());
  for_blocks<float>(w.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    const hn::RebindToUnsigned<decltype(d)> words;
    Draws draws(r.stream, r.step);
    for (int64_t first = begin; first < end;) {
      const int64_t column = first % r.columns;
      const int64_t size = std::min({end - first, r.columns - column, Draws::kMost});
      const int64_t index = r.first + first / r.columns * r.row_step + column;
      const uint32_t* const drawn = draws.draw(static_cast<uint64_t>(index), size);
      for_lanes(d, size, [&](auto at, int64_t i) PHX_LANES {
        uint16_t* const here = wd + first + i;
        const auto updated = adam.update(at, d, first + i, Bf16::load(at, d, here));
        const auto random = hn::ShiftRight<16>(at.load(words, drawn + i));
        at.store(Bf16::narrow(updated, random), Bf16::Bits(), here);
      });
      first += size;
    }
  });
}

template <class T>
void sgd(const Tensor& w, const Tensor& g, T rate) {
  T* const wd = w.data<T>();
  const T* const gd = g.data<T>();
  for_blocks<T>(w.numel(), [&](auto d, int64_t begin, int64_t end) HWY_ATTR {
    for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
      const int64_t j = begin + i;
      at.store(hn::NegMulAdd(hn::Set(d, rate), at.load(d, gd + j), at.load(d, wd + j)), d, wd + j);
    });
  });
}

void adamw_kernel(const AdamWTensors& x, double gradient_scale, const AdamWStep& step) {
  visit_float(x.w.dtype(), [&](auto t) {
    using T = decltype(t);
    const AdamWFactors<T> factors(step, gradient_scale);
    if constexpr (std::is_same_v<T, float>) {
      if (x.m.dtype() == DType::bf16) return adamw(x.w, AdamW(x, Bf16(), factors));
    }
    adamw(x.w, AdamW(x, Plain<T>(), factors));
  });
}

void adamw_rounding_kernel(const AdamWTensors& x, double gradient_scale, const AdamWStep& step,
                           const StochasticRounding& rounding) {
  const AdamWFactors<float> factors(step, gradient_scale);
  if (x.m.dtype() == DType::bf16) return adamw_rounding(x.w, AdamW(x, Bf16(), factors), rounding);
  adamw_rounding(x.w, AdamW(x, Plain<float>(), factors), rounding);
}

void sgd_kernel(const Tensor& w, const Tensor& g, double rate) {
  visit_float(w.dtype(), [&](auto t) { sgd(w, g, static_cast<decltype(t)>(rate)); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(adamw_kernel);
HWY_EXPORT(adamw_rounding_kernel);
HWY_EXPORT(sgd_kernel);

// `arithmetic`: what weights are updated in.
void check_tensors(const AdamWTensors& x, DType arithmetic) {
  const int64_t n = x.w.numel();
  PHX_CHECK(x.m.numel() == n && x.v.numel() == n && x.g.numel() == n, "adamw of {} with m {}, v {}, g {}",
            x.w.shape(), x.m.shape(), x.v.shape(), x.g.shape());
  const bool narrow_moments = x.m.dtype() == DType::bf16 && arithmetic == DType::f32;
  PHX_CHECK(x.m.dtype() == x.v.dtype() && (narrow_moments || x.m.dtype() == arithmetic),
            "adamw of {} with m of {} and v of {}", dtype_name(x.w.dtype()), dtype_name(x.m.dtype()),
            dtype_name(x.v.dtype()));
}
}  // namespace

void adamw_into(const AdamWTensors& x, double gradient_scale, const AdamWStep& step) {
  const int64_t n = x.w.numel();
  check_tensors(x, x.w.dtype());
  PHX_CHECK(!x.narrow.defined() || x.narrow.numel() == n, "adamw of {} into a narrow {}", x.w.shape(),
            x.narrow.shape());
  if constexpr (kHaveCuda) {
    if (x.w.on_cuda()) return cuda::adamw_into(x, gradient_scale, step);
  }
  {
    const TraceSpan span(TraceKind::optimizer, "adamw_into", 3 * x.w.bytes() + 4 * x.m.bytes());
    HWY_DYNAMIC_DISPATCH(adamw_kernel)(x, gradient_scale, step);
  }
  if (x.narrow.defined()) narrow_into(x.narrow, x.w);
}

void adamw_into(const AdamWTensors& x, double gradient_scale, const AdamWStep& step,
                const StochasticRounding& rounding) {
  check_tensors(x, DType::f32);
  PHX_CHECK(x.w.dtype() == DType::bf16 && !x.narrow.defined(), "adamw that rounds {}",
            dtype_name(x.w.dtype()));
  PHX_CHECK(rounding.columns > 0, "adamw of rows of {}", rounding.columns);
  if constexpr (kHaveCuda) {
    if (x.w.on_cuda()) return cuda::adamw_into(x, gradient_scale, step, rounding);
  }
  const TraceSpan span(TraceKind::optimizer, "adamw_into", 2 * x.w.bytes() + x.g.bytes() + 4 * x.m.bytes());
  HWY_DYNAMIC_DISPATCH(adamw_rounding_kernel)(x, gradient_scale, step, rounding);
}

void sgd_into(Tensor w, const Tensor& g, double gradient_scale, double lr) {
  PHX_CHECK(g.numel() == w.numel(), "sgd of {} with {}", w.shape(), g.shape());
  if constexpr (kHaveCuda) {
    if (w.on_cuda()) return cuda::sgd_into(w, g, gradient_scale, lr);
  }
  const TraceSpan span(TraceKind::optimizer, "sgd_into", 3 * w.bytes());
  HWY_DYNAMIC_DISPATCH(sgd_kernel)(w, g, lr * gradient_scale);
}

}  // namespace phalanx
#endif
