// Many random numbers at once, by the vectors of one target (base/philox.h). Kernels include this once for
// each target.
#include <array>
#include <cstdint>

#include "phalanx/base/philox.h"
#include "phalanx/ops/simd_targets.h"

#if defined(PHALANX_OPS_PHILOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PHALANX_OPS_PHILOX_INL_H_
#undef PHALANX_OPS_PHILOX_INL_H_
#else
#define PHALANX_OPS_PHILOX_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

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

/// Bits of a stream at one step for neighbours.
class Draws {
 public:
  static constexpr int64_t kMost = 1024;  ///< of one call

  HWY_INLINE Draws(const RandomStream& stream, uint64_t step) : words_(stream.key(), step) {}
  /// stream.bits(index + i, step) for i < count ≤ kMost; until the next call.
  HWY_INLINE const uint32_t* draw(uint64_t index, int64_t count) {
    const auto skip = static_cast<int64_t>(index % 4);
    words_.draw(index / 4, skip + count, drawn_.data());
    return drawn_.data() + skip;
  }

 private:
  // A few more are drawn, since counters give four and vectors several counters.
  static constexpr int64_t kSpare = 4 + 8 * 32;
  Words words_;
  alignas(64) std::array<uint32_t, kMost + kSpare> drawn_;
};

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
