// How elements lie in memory and what arithmetic on them is made in: vectors of one target, read and written
// whole or in part (simd-inl.h). Kernels include this once for each target.
#include "phalanx/ops/simd-inl.h"

#if defined(PHALANX_OPS_STORED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_STORED_INL_H_
#undef PHALANX_OPS_STORED_INL_H_
#else
#define PHALANX_OPS_STORED_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

/// Elements that are computed on as they are stored.
template <class T>
struct Plain {
  using Stored = T;
  using D = hn::ScalableTag<T>;
  template <class At>
  static HWY_INLINE hn::Vec<D> load(At at, D d, const T* p) {
    return at.load(d, p);
  }
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D d, T* p) {
    at.store(v, d, p);
  }
  static HWY_INLINE void stream(hn::Vec<D> v, D d, T* p) { hn::Stream(v, d, p); }
};

/// bf16, in float.
struct Bf16 {
  using Stored = uint16_t;
  using D = hn::ScalableTag<float>;
  using Bits = hn::Rebind<uint16_t, D>;
  using Wide = hn::Rebind<uint32_t, D>;
  template <class At>
  static HWY_INLINE hn::Vec<D> load(At at, D d, const uint16_t* p) {
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(Wide(), at.load(Bits(), p))));
  }
  // As bf16::from: to nearest, ties to even; NaN stays NaN. (The processor's own instruction flushes
  // denormals.)
  static HWY_INLINE hn::Vec<Bits> narrow(hn::Vec<D> v) {
    const Wide w;
    const auto u = hn::BitCast(w, v);
    const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(w, 1u));
    return narrow(v, hn::Add(odd, hn::Set(w, 0x7fffu)));
  }
  // To a neighbour: away from zero if the bits that are cut off and those of `added` carry. NaN stays NaN.
  static HWY_INLINE hn::Vec<Bits> narrow(hn::Vec<D> v, hn::Vec<Wide> added) {
    const Wide w;
    const auto u = hn::BitCast(w, v);
    const auto nan = hn::Or(u, hn::Set(w, 0x400000u));
    const auto bits = hn::IfThenElse(hn::RebindMask(w, hn::IsNaN(v)), nan, hn::Add(u, added));
    return hn::TruncateTo(Bits(), hn::ShiftRight<16>(bits));
  }
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D, uint16_t* p) {
    at.store(narrow(v), Bits(), p);
  }
  static HWY_INLINE void stream(hn::Vec<D> v, D, uint16_t* p) { hn::Stream(narrow(v), Bits(), p); }
};

/// f16, in float.
struct F16 {
  using Stored = uint16_t;
  using D = hn::ScalableTag<float>;
  using Bits = hn::Rebind<uint16_t, D>;
  using Half = hn::Rebind<hwy::float16_t, D>;
  template <class At>
  static HWY_INLINE hn::Vec<D> load(At at, D d, const uint16_t* p) {
    return hn::PromoteTo(d, hn::BitCast(Half(), at.load(Bits(), p)));
  }
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D, uint16_t* p) {
    at.store(hn::BitCast(Bits(), hn::DemoteTo(Half(), v)), Bits(), p);
  }
  static HWY_INLINE void stream(hn::Vec<D> v, D, uint16_t* p) {
    hn::Stream(hn::BitCast(Bits(), hn::DemoteTo(Half(), v)), Bits(), p);
  }
};

/// f8e4m3, in float.
struct E4m3 {
  using Stored = uint8_t;
  using D = hn::ScalableTag<float>;
  using Bits = hn::Rebind<uint8_t, D>;
  using Wide = hn::Rebind<uint32_t, D>;
  // As f8e4m3::to_float: below 8 there are units of 2^-9, above that bits to be moved into place.
  template <class At>
  static HWY_INLINE hn::Vec<D> load(At at, D d, const uint8_t* p) {
    const Wide w;
    const auto bits = hn::PromoteTo(w, at.load(Bits(), p));
    const auto magnitude = hn::And(bits, hn::Set(w, 0x7fu));
    const auto small =
        hn::Mul(hn::ConvertTo(d, hn::BitCast(hn::RebindToSigned<Wide>(), magnitude)), hn::Set(d, 0x1p-9f));
    const auto large = hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(w, 120u << 23));
    auto value = hn::IfThenElse(hn::Lt(magnitude, hn::Set(w, 8u)), hn::BitCast(w, small), large);
    value = hn::IfThenElse(hn::Eq(magnitude, hn::Set(w, 0x7fu)), hn::Set(w, 0x7fc00000u), value);
    return hn::BitCast(d, hn::Or(value, hn::ShiftLeft<24>(hn::Xor(bits, magnitude))));
  }
  // As f8e4m3::from.
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D d, uint8_t* p) {
    const Wide w;
    const auto u = hn::BitCast(w, v);
    const auto magnitude = hn::And(u, hn::Set(w, 0x7fffffffu));
    const auto sign = hn::And(hn::ShiftRight<24>(u), hn::Set(w, 0x80u));
    const auto unit = hn::Set(w, 141u << 23);  // adding it rounds subnormals to theirs
    const auto small =
        hn::Sub(hn::BitCast(w, hn::Add(hn::BitCast(d, magnitude), hn::BitCast(d, unit))), unit);
    const auto rebased = hn::Sub(magnitude, hn::Set(w, 120u << 23));
    const auto odd = hn::And(hn::ShiftRight<20>(magnitude), hn::Set(w, 1u));
    const auto rounded = hn::ShiftRight<20>(hn::Add(rebased, hn::Add(odd, hn::Set(w, 0x7ffffu))));
    auto bits = hn::Min(rounded, hn::Set(w, 0x7eu));
    bits = hn::IfThenElse(hn::Lt(magnitude, hn::Set(w, 121u << 23)), small, bits);
    bits = hn::IfThenElse(hn::Gt(magnitude, hn::Set(w, 0x7f800000u)), hn::Set(w, 0x7fu), bits);
    at.store(hn::TruncateTo(Bits(), hn::Or(bits, sign)), Bits(), p);
  }
};

/// f(S()) with S how elements of a dtype are stored whose arithmetic is in float: f32, bf16 or f16.
template <class F>
HWY_INLINE decltype(auto) visit_floats(DType dtype, F f) {
  if (dtype == DType::f32) return f(Plain<float>());
  if (dtype == DType::bf16) return f(Bf16());
  PHX_CHECK(dtype == DType::f16, "arithmetic on {}", dtype_name(dtype));
  return f(F16());
}

/// The same, or f64.
template <class F>
HWY_INLINE decltype(auto) visit_stored(DType dtype, F f) {
  if (dtype == DType::f64) return f(Plain<double>());
  return visit_floats(dtype, f);
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
