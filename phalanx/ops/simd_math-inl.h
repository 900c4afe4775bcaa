// exp, the logistic function and the normal distribution, lane by lane. f32 by polynomials whose errors are
// stated (in units of the last place of the exact result; measured on AVX2 and AVX-512 against f64); f64 by
// libm.
#include <cmath>

#include "phalanx/ops/simd_targets.h"

#if defined(PHALANX_OPS_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_SIMD_MATH_INL_H_
#undef PHALANX_OPS_SIMD_MATH_INL_H_
#else
#define PHALANX_OPS_SIMD_MATH_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// f of each lane, by a scalar function.
template <class D, class V, class F>
HWY_INLINE V per_lane(D d, V v, F f) {
  HWY_ALIGN hn::TFromD<D> lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = f(lanes[i]);
  return hn::Load(d, lanes);
}

/// c0 + c1·x + … by Horner's rule.
template <class D, class V>
HWY_INLINE V polynomial(D d, V, float c) {
  return hn::Set(d, c);
}
template <class D, class V, class... C>
HWY_INLINE V polynomial(D d, V x, float c0, C... rest) {
  return hn::MulAdd(polynomial(d, x, rest...), x, hn::Set(d, c0));
}

/// e^x. f32: 2^n·e^r with |r| ≤ ln2/2, e^r by a minimax polynomial (relative error 2^-28 before rounding):
/// error ≤ 1.1 ulp; results below the smallest normal number are 0, above the largest ∞; NaN stays NaN.
template <class D, class V>
HWY_INLINE V exp(D d, V x) {
  if constexpr (std::is_same_v<hn::TFromD<D>, double>) {
    return per_lane(d, x, [](double v) { return std::exp(v); });
  } else {
    const hn::RebindToSigned<D> di;
    const V magic = hn::Set(d, 12582912.0f);  // 1.5·2^23: the sum's last bits are the integer n
    const V t = hn::MulAdd(x, hn::Set(d, 1.44269504f), magic);
    const V n = hn::Sub(t, magic);
    // ln2 in two parts; n times the first is exact.
    V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
    r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
    const V q =
        polynomial(d, r, 0.4999999341f, 0.1666652011f, 0.04166839425f, 0.008368780452f, 0.001381446549f);
    const V p = hn::Add(hn::MulAdd(hn::Mul(r, r), q, r), hn::Set(d, 1.0f));
    const auto bits = hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, t)));
    const V y = hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -87.336f)), hn::BitCast(d, bits));
    // x · 3e38 is ∞ for every x whose exponential is, and NaN for NaN.
    const auto finite_or_less = hn::Le(x, hn::Set(d, 88.722839f));
    return hn::IfThenElse(finite_or_less, y, hn::Mul(x, hn::Set(d, 3e38f)));
  }
}

/// 1 / (1 + e^-x).
template <class D, class V>
HWY_INLINE V logistic(D d, V x) {
  const V one = hn::Set(d, hn::TFromD<D>{1});
  return hn::Div(one, hn::Add(one, exp(d, hn::Neg(x))));
}

/// Φ(x), the cumulative distribution of the standard normal, and φ(x), its density.
template <class V>
struct Normal {
  V cdf;
  V density;
};

/// f32: Φ(−t) = φ(t)·m(t) for t ≥ 0, m (Mills' ratio) by a rational function (relative error 2^-27.5 before
/// rounding; all coefficients positive, so that nothing cancels): error of Φ ≤ 6.6 ulp where Φ ≥ 1e-37, most
/// of it in the last digit of the tail; ≤ 2 ulp for x ≥ 0.5; of φ ≤ 2.8 ulp.
template <class D, class V>
HWY_INLINE Normal<V> normal(D d, V x) {
  using T = hn::TFromD<D>;
  const V inv_sqrt_2pi = hn::Set(d, static_cast<T>(0.3989422804014327));
  const V minus_half = hn::Set(d, T{-0.5});
  if constexpr (std::is_same_v<T, double>) {
    const V cdf = per_lane(d, x, [](double v) { return 0.5 * std::erfc(v * -0.7071067811865476); });
    return {cdf, hn::Mul(inv_sqrt_2pi, exp(d, hn::Mul(minus_half, hn::Mul(x, x))))};
  } else {
    const V t = hn::Min(hn::Abs(x), hn::Set(d, 14.0f));  // Φ(−14) is 0 in f32
    const V square = hn::Mul(t, t);
    const V lost = hn::MulSub(t, t, square);  // rounded away: e^(a+b) = e^a·(1 + b)
    const V e0 = exp(d, hn::Mul(minus_half, square));
    const V e = hn::MulAdd(hn::Mul(minus_half, lost), e0, e0);
    const V above =
        polynomial(d, t, 0.5000000025f, 0.4356974982f, 0.1813149923f, 0.03998692787f, 0.004020589526f);
    const V below =
        polynomial(d, t, 1.0f, 1.669279914f, 1.194518524f, 0.4644020353f, 0.1002397416f, 0.01007798026f);
    const V tail = hn::Mul(e, hn::Div(above, below));
    const V cdf = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(hn::Set(d, 1.0f), tail));
    return {cdf, hn::Mul(inv_sqrt_2pi, e)};
  }
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
