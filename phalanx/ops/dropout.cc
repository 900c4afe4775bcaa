#include "phalanx/ops/dropout.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/dropout.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// The elements that draw at once; a few more are drawn, since counters give four and vectors several
// counters.
constexpr int64_t kDraws = 1024;
constexpr int64_t kSpareDraws = 4 + 8 * 32;

/// The words of a stream's Philox at one step: draw(first, count, out) gives words 4·first … of it, at least
/// `count`, equal to philox(key, first + i, step) word by word.
#if HWY_TARGET == HWY_SCALAR
class Words {
 public:
  Words(uint64_t key, uint64_t step) : key_(key), step_(step) {}
  void draw(uint64_t first, int64_t count, uint32_t* out) const {
    for (int64_t i = 0; i < count; i += 4) {
      const auto words = philox(key_, first + static_cast<uint64_t>(i / 4), step_);
      std::copy(words.begin(), words.end(), out + i);
    }
  }

 private:
  uint64_t key_, step_;
};
#else
// Each 64-bit lane is one counter; of its words' lanes the upper half may hold anything.
class Words {
 public:
  HWY_INLINE Words(uint64_t key, uint64_t step)
      : key0_(hn::Set(D(), key)),
        key1_(hn::Set(D(), key >> 32)),
        c2_(hn::Set(D(), step)),
        c3_(hn::Set(D(), step >> 32)) {}

  // Two vectors of counters at a time, since each round waits for its products.
  HWY_INLINE void draw(uint64_t first, int64_t count, uint32_t* out) const {
    const size_t lanes = hn::Lanes(D());
    for (int64_t i = 0; i < count; i += static_cast<int64_t>(8 * lanes)) {
      const uint64_t counter = first + static_cast<uint64_t>(i / 4);
      Block x = start(counter);
      Block y = start(counter + lanes);
      V k0 = key0_;
      V k1 = key1_;
      for (int r = 0; r < 10; ++r) {
        round(x, k0, k1);
        round(y, k0, k1);
        k0 = hn::Add(k0, hn::Set(D(), uint64_t{0x9E3779B9u}));
        k1 = hn::Add(k1, hn::Set(D(), uint64_t{0xBB67AE85u}));
      }
      store(x, out + i);
      store(y, out + i + 4 * lanes);
    }
  }

 private:
  using D = hn::ScalableTag<uint64_t>;
  using Halves = hn::RepartitionToNarrow<D>;
  using V = hn::Vec<D>;
  struct Block {
    V c0, c1, c2, c3;
  };

  HWY_INLINE Block start(uint64_t counter) const {
    const V c0 = hn::Iota(D(), counter);
    return {c0, hn::ShiftRight<32>(c0), c2_, c3_};
  }
  static HWY_INLINE V product(V v, uint32_t factor) {
    return hn::MulEven(hn::BitCast(Halves(), v), hn::Set(Halves(), factor));
  }
  static HWY_INLINE void round(Block& c, V k0, V k1) {
    const V a = product(c.c0, 0xD2511F53u);
    const V b = product(c.c2, 0xCD9E8D57u);
    c = {hn::Xor(hn::Xor(hn::ShiftRight<32>(b), c.c1), k0), b,
         hn::Xor(hn::Xor(hn::ShiftRight<32>(a), c.c3), k1), a};
  }
  static HWY_INLINE V pack(V low, V high) {
    const auto shifted = hn::BitCast(Halves(), hn::ShiftLeft<32>(high));
    return hn::BitCast(D(), hn::OddEven(shifted, hn::BitCast(Halves(), low)));
  }
  static HWY_INLINE void store(const Block& c, uint32_t* out) {
    hn::StoreInterleaved2(pack(c.c0, c.c1), pack(c.c2, c.c3), D(), reinterpret_cast<uint64_t*>(out));
  }

  V key0_, key1_, c2_, c3_;
};
#endif

/// Which of a vector's draws keep their element: 32 unsigned bits ≥ threshold, compared with the sign bit
/// flipped.
template <class D>
HWY_INLINE hn::Mask<D> dropped(D d, const uint32_t* draws, uint32_t threshold) {
  using T = hn::TFromD<D>;
  const hn::RebindToSigned<D> wide;
  const hn::Rebind<int32_t, D> narrow;
  const auto bits = hn::LoadU(narrow, reinterpret_cast<const int32_t*>(draws));
  const auto flipped = hn::Xor(bits, hn::Set(narrow, std::numeric_limits<int32_t>::min()));
  const auto limit = static_cast<int32_t>(threshold ^ 0x80000000u);
  if constexpr (sizeof(T) == 4) {
    return hn::RebindMask(d, hn::Lt(flipped, hn::Set(narrow, limit)));
  } else {
    return hn::RebindMask(d, hn::Lt(hn::PromoteTo(wide, flipped), hn::Set(wide, int64_t{limit})));
  }
}

template <class T>
void forward(const Tensor& x, const Tensor& rows, const DropoutSite& site, const Tensor& y) {
  const int64_t width = x.dim(1);
  const int64_t* const row = rows.data<int64_t>();
  const uint32_t threshold = dropout_threshold(site.rate);
  const T* const xd = x.data<T>();
  T* const yd = y.data<T>();
  parallel_for(x.rows(), block_rows(width), [&](int64_t block, int64_t block_end) HWY_ATTR {
    const hn::ScalableTag<T> d;
    const auto factor = hn::Set(d, static_cast<T>(1 / (1 - site.rate)));
    const Words words(site.stream.key(), site.step);
    alignas(64) uint32_t draws[kDraws + kSpareDraws];
    for (int64_t r = block; r < block_end; ++r) {
      for (int64_t begin = 0; begin < width; begin += kDraws) {
        const int64_t size = std::min(kDraws, width - begin);
        const auto index = static_cast<uint64_t>(row[r] * width + begin);
        const auto skip = static_cast<int64_t>(index % 4);
        words.draw(index / 4, skip + size, draws);
        const T* in = xd + r * width + begin;
        T* out = yd + r * width + begin;
        for_lanes(d, size, [&](auto at, int64_t i) PHX_LANES {
          const auto scaled = hn::Mul(at.load(d, in + i), factor);
          at.store(hn::IfThenZeroElse(dropped(d, draws + skip + i, threshold), scaled), d, out + i);
        });
      }
    }
  });
}

void dropout_kernel(const Tensor& x, const Tensor& rows, const DropoutSite& site, const Tensor& y) {
  visit_float(x.dtype(), [&](auto t) { forward<decltype(t)>(x, rows, site, y); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(dropout_kernel);
}  // namespace

uint32_t dropout_threshold(double rate) {
  PHX_CHECK(rate >= 0 && rate < 1, "dropout rate {}, expected one in [0, 1)", rate);
  return static_cast<uint32_t>(std::ldexp(rate, 32));
}

Tensor dropout(const Tensor& x, const Tensor& rows, const DropoutSite& site) {
  PHX_CHECK(rows.numel() == x.rows(), "{} row numbers for {}", rows.numel(), x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::dropout(x, rows, site);
  }
  const Tensor y = Tensor::empty(x.shape(), x.dtype());
  const TraceSpan span(TraceKind::elementwise, "dropout", 2 * x.bytes());
  HWY_DYNAMIC_DISPATCH(dropout_kernel)(x, rows, site, y);
  return y;
}

}  // namespace phalanx
#endif
