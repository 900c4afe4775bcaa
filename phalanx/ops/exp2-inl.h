// Powers of two of scores below their maximum, for softmax. Included once for each target.
#include <cmath>
#include <type_traits>

#include "phalanx/ops/simd_math-inl.h"

#if defined(PHALANX_OPS_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_EXP2_INL_H_
#undef PHALANX_OPS_EXP2_INL_H_
#else
#define PHALANX_OPS_EXP2_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

/// 2^x for x ≤ 0, at a third less work than exp. f32: error ≤ 1.5 ulp; 0 below 2^−126.5; NaN stays NaN.
template <class D, class V>
HWY_INLINE V exp2_of_negative(D d, V x) {
  if constexpr (std::is_same_v<hn::TFromD<D>, double>) {
    return per_lane(d, x, [](double v) { return std::exp2(v); });
  } else {
    const hn::RebindToSigned<D> di;
    const V magic = hn::Set(d, 12582912.0f + 127.0f);   // 1.5·2^23: the last bits of the sum are n + 127
    const V clamped = hn::Max(hn::Set(d, -127.0f), x);  // a NaN in x, the second operand, stays
    const V t = hn::Add(clamped, magic);
    const V r = hn::Sub(clamped, hn::Sub(t, magic));
    const V p =
        polynomial(d, r, 1.0f, 0.6931470036506653f, 0.24022242426872253f, 0.05550733581185341f,
                   0.009671512991189957f, 0.0013264723820611835f);  // relative error 9.2e-8, exact at 0
    return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, t))));
  }
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
