#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/comm/reduce.cc"
#include <hwy/foreach_target.h>  // compiles this file once for each instruction set
// The order matters: foreach_target first.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "phalanx/base/pooled.h"
#include "phalanx/comm/combine.h"
#include "phalanx/comm/reduce.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Inputs = std::span<const std::byte* const>;
using Outputs = std::span<std::byte* const>;

// combine of vectors, with the same bits.
template <Reduce kReduce>
struct Combine {
  template <class D, class V>
  static V vectors(D d, V a, V b) {
    using T = hn::TFromD<D>;
    if constexpr (kReduce == Reduce::sum) return hn::Add(a, b);
    const auto keep_a = kReduce == Reduce::max ? hn::Gt(a, b) : hn::Lt(a, b);
    if constexpr (std::is_floating_point_v<T>) {
      return hn::IfThenElse(hn::Or(keep_a, hn::Ne(a, a)), a, b);
    }
    static_cast<void>(d);
    return hn::IfThenElse(keep_a, a, b);
  }
};

// How elements lie in memory and what they are summed in.
template <class T>
struct Plain {
  using Value = T;
  using Stored = T;
  static constexpr bool kVectors = true;
  template <class D>
  static auto load(D d, const Stored* p) {
    return hn::LoadU(d, p);
  }
  template <class D, class V>
  static void store(D d, V v, Stored* p) {
    hn::StoreU(v, d, p);
  }
  static Value value(Stored s) { return s; }
  static Stored stored(Value v) { return v; }
};

struct Bf16 {
  using Value = float;
  using Stored = uint16_t;
  static constexpr bool kVectors = true;
  template <class D>
  static auto load(D d, const Stored* p) {
    const hn::Repartition<uint32_t, D> du;
    const hn::Rebind<uint16_t, D> dh;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, p))));
  }
  template <class D, class V>
  static void store(D d, V v, Stored* p) {
    const hn::Repartition<uint32_t, D> du;
    const hn::Repartition<int32_t, D> di;
    const hn::Rebind<uint16_t, D> dh;
    const auto u = hn::BitCast(du, v);
    const auto high = hn::ShiftRight<16>(u);
    const auto odd = hn::And(high, hn::Set(du, 1u));
    const auto nearest = hn::ShiftRight<16>(hn::Add(u, hn::Add(odd, hn::Set(du, 0x7fffu))));
    const auto is_nan = hn::RebindMask(du, hn::Ne(v, v));
    const auto bits = hn::IfThenElse(is_nan, hn::Or(high, hn::Set(du, 0x40u)), nearest);
    hn::StoreU(hn::DemoteTo(dh, hn::BitCast(di, bits)), dh, p);
    static_cast<void>(d);
  }
  static Value value(Stored s) { return bf16{s}.to_float(); }
  static Stored stored(Value v) { return bf16::from(v).bits; }
};

struct F16 {
  using Value = float;
  using Stored = uint16_t;
  static constexpr bool kVectors = false;
  static Value value(Stored s) { return f16{s}.to_float(); }
  static Stored stored(Value v) { return f16::from(v).bits; }
};

template <class Stored>
const Stored* at(const std::byte* base, int64_t i) {
  return reinterpret_cast<const Stored*>(base) + i;
}
template <class Stored>
Stored* at(std::byte* base, int64_t i) {
  return reinterpret_cast<Stored*>(base) + i;
}

// Four vectors at a time, so that the parts' addresses are read once for each four.
template <class Format, Reduce kReduce>
int64_t reduce_vectors(Inputs in, Outputs out, int64_t n) {
  using Stored = typename Format::Stored;
  const hn::ScalableTag<typename Format::Value> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  using C = Combine<kReduce>;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const Stored* first = at<Stored>(in[0], i);
    auto v0 = Format::load(d, first);
    auto v1 = Format::load(d, first + lanes);
    auto v2 = Format::load(d, first + 2 * lanes);
    auto v3 = Format::load(d, first + 3 * lanes);
    for (const std::byte* part : in.subspan(1)) {
      const Stored* p = at<Stored>(part, i);
      v0 = C::vectors(d, v0, Format::load(d, p));
      v1 = C::vectors(d, v1, Format::load(d, p + lanes));
      v2 = C::vectors(d, v2, Format::load(d, p + 2 * lanes));
      v3 = C::vectors(d, v3, Format::load(d, p + 3 * lanes));
    }
    for (std::byte* to : out) {
      Stored* p = at<Stored>(to, i);
      Format::store(d, v0, p);
      Format::store(d, v1, p + lanes);
      Format::store(d, v2, p + 2 * lanes);
      Format::store(d, v3, p + 3 * lanes);
    }
  }
  return i;
}

template <class Format, Reduce kReduce>
void reduce_typed(Inputs in, Outputs out, int64_t n) {
  using Stored = typename Format::Stored;
  int64_t i = 0;
  if constexpr (Format::kVectors) i = reduce_vectors<Format, kReduce>(in, out, n);
  for (; i < n; ++i) {
    auto v = Format::value(*at<Stored>(in[0], i));
    for (const std::byte* part : in.subspan(1)) {
      v = combine<kReduce>(v, Format::value(*at<Stored>(part, i)));
    }
    for (std::byte* to : out) *at<Stored>(to, i) = Format::stored(v);
  }
}

template <class Format>
void reduce_format(Reduce reduce, Inputs in, Outputs out, int64_t n) {
  switch (reduce) {
    case Reduce::sum:
      return reduce_typed<Format, Reduce::sum>(in, out, n);
    case Reduce::max:
      return reduce_typed<Format, Reduce::max>(in, out, n);
    case Reduce::min:
      return reduce_typed<Format, Reduce::min>(in, out, n);
  }
}

void reduce_parts_simd(DType dtype, Reduce reduce, Inputs in, Outputs out, int64_t n) {
  switch (dtype) {
    case DType::f64:
      return reduce_format<Plain<double>>(reduce, in, out, n);
    case DType::f32:
      return reduce_format<Plain<float>>(reduce, in, out, n);
    case DType::bf16:
      return reduce_format<Bf16>(reduce, in, out, n);
    case DType::f16:
      return reduce_format<F16>(reduce, in, out, n);
    case DType::i64:
      return reduce_format<Plain<int64_t>>(reduce, in, out, n);
    case DType::i32:
      return reduce_format<Plain<int32_t>>(reduce, in, out, n);
    case DType::i8:
    case DType::u8:
    case DType::f8e4m3:
    case DType::f8e5m2:
      PHX_CHECK(false, "reduction of {}", dtype_name(dtype));
  }
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {

HWY_EXPORT(reduce_parts_simd);

bool can_reduce(DType dtype) { return dtype != DType::i8 && dtype != DType::u8; }

void reduce_parts(DType dtype, Reduce reduce, std::span<const std::byte* const> in,
                  std::span<std::byte* const> out, int64_t n) {
  HWY_DYNAMIC_DISPATCH(reduce_parts_simd)(dtype, reduce, in, out, n);
}

void reduce_tensors(const Tensor& out, std::span<const Tensor> in, Reduce reduce) {
  for (const Tensor& part : in) {
    PHX_CHECK(part.dtype() == out.dtype() && part.numel() == out.numel(), "{} {} reduced into {} {}",
              dtype_name(part.dtype()), part.shape(), dtype_name(out.dtype()), out.shape());
  }
  if constexpr (kHaveCuda) {
    if (out.on_cuda()) return cuda::reduce_tensors(out, in, reduce);
  }
  PooledVector<const std::byte*> parts;
  for (const Tensor& part : in) parts.push_back(part.raw());
  std::byte* const to = out.raw();
  reduce_parts(out.dtype(), reduce, parts, std::span(&to, 1), out.numel());
}

}  // namespace phalanx
#endif  // HWY_ONCE
