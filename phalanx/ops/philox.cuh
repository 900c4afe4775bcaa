// Random numbers of a counter on a GPU, with the bits of base/philox.h.
#pragma once

#include <cstdint>

namespace phalanx::cuda {

inline constexpr int kPhiloxWords = 4;  // of one counter
struct PhiloxWords {
  uint32_t v[kPhiloxWords];
};

/// philox at counter (low, high).
__device__ inline PhiloxWords philox_words(uint64_t key, uint64_t low, uint64_t high) {
  PhiloxWords c = {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
                    static_cast<uint32_t>(high >> 32)}};
  auto k0 = static_cast<uint32_t>(key);
  auto k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.v[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c.v[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.v[1] ^ k0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.v[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

}  // namespace phalanx::cuda
