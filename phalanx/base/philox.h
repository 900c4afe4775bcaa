// Counter-based random numbers: the same number for the same key and index in every layout.
// Philox4x32-10, J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace phalanx {

/// Four 32-bit words from a 64-bit key and a 128-bit counter (low, high).
std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_low, uint64_t counter_high = 0);

/// A stream of random numbers named by (seed, name): a tensor's initial values, a dropout site, a sampler.
/// `index` is the global index of an element; `step` tells training steps apart.
class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name);

  /// Uniform in [0, 1), with 53 bits.
  double uniform(uint64_t index, uint64_t step = 0) const;
  /// 32 random bits.
  uint32_t bits(uint64_t index, uint64_t step = 0) const;
  /// Standard normal (Box-Muller).
  double normal(uint64_t index, uint64_t step = 0) const;
  /// The Philox key, for kernels that draw many numbers at once: bits(i, step) is word i mod 4 of
  /// philox(key(), i / 4, step).
  uint64_t key() const { return key_; }

 private:
  uint64_t key_;
};

}  // namespace phalanx
