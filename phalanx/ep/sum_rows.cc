#include "phalanx/base/trace.h"
#include "phalanx/ep/layout.h"
#include "phalanx/ops/simd_targets.h"
#include "phalanx/ops/stream_copy.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ep/sum_rows.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

using ep::Layout;
using ep::Pairs;

// How elements are stored, and summed as floats.
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
    const auto rounded = hn::Add(u, hn::Add(odd, hn::Set(w, 0x7fffu)));
    const auto nan = hn::Or(u, hn::Set(w, 0x400000u));
    const auto bits = hn::IfThenElse(hn::RebindMask(w, hn::IsNaN(v)), nan, rounded);
    return hn::TruncateTo(Bits(), hn::ShiftRight<16>(bits));
  }
  template <class At>
  static HWY_INLINE void store(At at, hn::Vec<D> v, D, uint16_t* p) {
    at.store(narrow(v), Bits(), p);
  }
  static HWY_INLINE void stream(hn::Vec<D> v, D, uint16_t* p) { hn::Stream(narrow(v), Bits(), p); }
};

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

// out = Σ of n elements at each of `in`.
template <class S>
void sum_row(std::span<const typename S::Stored* const> in, int64_t n, bool stream, typename S::Stored* out) {
  const typename S::D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    auto a = S::load(Whole{}, d, in[0] + i);
    auto b = S::load(Whole{}, d, in[0] + i + lanes);
    auto c = S::load(Whole{}, d, in[0] + i + 2 * lanes);
    auto e = S::load(Whole{}, d, in[0] + i + 3 * lanes);
    for (const auto* const x : in.subspan(1)) {
      a = hn::Add(a, S::load(Whole{}, d, x + i));
      b = hn::Add(b, S::load(Whole{}, d, x + i + lanes));
      c = hn::Add(c, S::load(Whole{}, d, x + i + 2 * lanes));
      e = hn::Add(e, S::load(Whole{}, d, x + i + 3 * lanes));
    }
    if (stream) {
      S::stream(a, d, out + i);
      S::stream(b, d, out + i + lanes);
      S::stream(c, d, out + i + 2 * lanes);
      S::stream(e, d, out + i + 3 * lanes);
    } else {
      S::store(Whole{}, a, d, out + i);
      S::store(Whole{}, b, d, out + i + lanes);
      S::store(Whole{}, c, d, out + i + 2 * lanes);
      S::store(Whole{}, e, d, out + i + 3 * lanes);
    }
  }
  for_lanes(d, n - i, [&](auto at, int64_t j) PHX_LANES {
    auto sum = S::load(at, d, in[0] + i + j);
    for (const auto* const x : in.subspan(1)) sum = hn::Add(sum, S::load(at, d, x + i + j));
    S::store(at, sum, d, out + i + j);
  });
}

template <class S>
void sum_all(const Layout& layout, std::span<const std::byte* const> from, const Tensor& out) {
  const int64_t width = out.row_size();
  const bool stream = ep::past_caches(layout, out) && can_stream(out.raw(), ep::row_bytes(out));
  auto* const to = reinterpret_cast<typename S::Stored*>(out.raw());
  parallel_for(out.rows(), block_rows(width), [&](int64_t begin, int64_t end) HWY_ATTR {
    PooledVector<const typename S::Stored*> in;
    for (int64_t t = begin; t < end; ++t) {
      const Pairs pairs(layout, t);
      in.clear();
      for (size_t p = 0; p < pairs.ranks.size(); ++p) {
        const auto* base = from[static_cast<size_t>(pairs.ranks[p])];
        in.push_back(reinterpret_cast<const typename S::Stored*>(base) + pairs.rows[p] * width);
      }
      if (in.empty()) {
        std::fill_n(to + t * width, width, typename S::Stored{0});
      } else {
        sum_row<S>(in, width, stream, to + t * width);
      }
    }
    stream_fence();
  });
}

void sum_kernel(const Layout& layout, std::span<const std::byte* const> from, const Tensor& out) {
  switch (out.dtype()) {
    case DType::f64:
      return sum_all<Plain<double>>(layout, from, out);
    case DType::f32:
      return sum_all<Plain<float>>(layout, from, out);
    case DType::bf16:
      return sum_all<Bf16>(layout, from, out);
    case DType::f16:
      return sum_all<F16>(layout, from, out);
    default:
      PHX_CHECK(false, "sums of {}", dtype_name(out.dtype()));
  }
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx::ep {
namespace {
HWY_EXPORT(sum_kernel);
}  // namespace

void sum_rows(const Layout& layout, std::span<const std::byte* const> from, const Tensor& out) {
  const TraceSpan span(TraceKind::elementwise, "sum_rows",
                       out.bytes() + static_cast<size_t>(layout.pairs()) * row_bytes(out));
  HWY_DYNAMIC_DISPATCH(sum_kernel)(layout, from, out);
}

}  // namespace phalanx::ep
#endif
