// How elements are stored in rows, and summed as wider floats. Kernels include this once for each target.
#include <algorithm>
#include <array>

#include "phalanx/ops/simd-inl.h"

#if defined(PHALANX_EP_STORED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_EP_STORED_INL_H_
#undef PHALANX_EP_STORED_INL_H_
#else
#define PHALANX_EP_STORED_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace phalanx::ep::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using phalanx::HWY_NAMESPACE::Rest;
using phalanx::HWY_NAMESPACE::Whole;

/// Elements of two bytes, and no byte more: AVX2 has no masks for them, and Highway's masked load reads a
/// whole vector there, which reaches into the next row and past the last.
template <class D>
HWY_INLINE hn::Vec<D> load_halves(Whole at, D d, const uint16_t* p) {
  return at.load(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> load_halves(Rest at, D d, const uint16_t* p) {
  HWY_ALIGN std::array<uint16_t, HWY_MAX_BYTES / sizeof(uint16_t)> lanes{};
  std::copy_n(p, at.n, lanes.data());
  return hn::Load(d, lanes.data());
}
/// f32 and f64: as they are.
template <class T>
struct StoredPlain {
  using Stored = T;
  using D = hn::ScalableTag<T>;
  template <class At>
  static HWY_INLINE hn::Vec<D> load(At at, D d, const Stored* p) {
    return at.load(d, p);
  }
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D d, Stored* p) {
    at.store(v, d, p);
  }
};

/// Halves of a float, to nearest, ties to even, NaN stays NaN, as bf16::from. (The processor's own
/// instruction flushes denormals.)
struct StoredBf16 {
  using Stored = uint16_t;
  using D = hn::ScalableTag<float>;
  template <class At>
  static HWY_INLINE hn::Vec<D> load(At at, D d, const Stored* p) {
    const hn::Rebind<uint32_t, D> wide;
    const hn::Rebind<Stored, D> bits;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, load_halves(at, bits, p))));
  }
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D d, Stored* p) {
    const hn::Rebind<uint32_t, D> wide;
    const hn::Rebind<Stored, D> bits;
    const auto u = hn::BitCast(wide, v);
    const auto half = hn::Add(hn::Set(wide, 0x7fffu), hn::And(hn::ShiftRight<16>(u), hn::Set(wide, 1u)));
    const auto is_nan = hn::RebindMask(wide, hn::Ne(v, v));
    const auto out = hn::IfThenElse(is_nan, hn::Or(u, hn::Set(wide, 0x400000u)), hn::Add(u, half));
    at.store(hn::TruncateTo(bits, hn::ShiftRight<16>(out)), bits, p);
    static_cast<void>(d);
  }
};

/// IEEE halves.
struct StoredF16 {
  using Stored = uint16_t;
  using D = hn::ScalableTag<float>;
  template <class At>
  static HWY_INLINE hn::Vec<D> load(At at, D d, const Stored* p) {
    const hn::Rebind<hwy::float16_t, D> half;
    const hn::Rebind<Stored, D> bits;
    return hn::PromoteTo(d, hn::BitCast(half, load_halves(at, bits, p)));
  }
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D d, Stored* p) {
    const hn::Rebind<hwy::float16_t, D> half;
    const hn::Rebind<Stored, D> bits;
    at.store(hn::BitCast(bits, hn::DemoteTo(half, v)), bits, p);
    static_cast<void>(d);
  }
};

}  // namespace phalanx::ep::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
