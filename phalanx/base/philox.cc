#include "phalanx/base/philox.h"

#include <cmath>
#include <numbers>

namespace phalanx {
namespace {

// 64-bit FNV-1a, then a finaliser (splitmix64), so that similar names give unrelated keys.
uint64_t hash(uint64_t seed, std::string_view name) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  h += seed * 0x9e3779b97f4a7c15u;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
  return h ^ (h >> 31);
}

double unit_interval(uint32_t low, uint32_t high) {
  const uint64_t bits = (static_cast<uint64_t>(high) << 32 | low) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace

std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  std::array<uint32_t, 4> c = {static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
                               static_cast<uint32_t>(counter_high),
                               static_cast<uint32_t>(counter_high >> 32)};
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c[0];
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

RandomStream::RandomStream(uint64_t seed, std::string_view name) : key_(hash(seed, name)) {}

double RandomStream::uniform(uint64_t index, uint64_t step) const {
  const auto r = philox(key_, index / 2, step);
  return index % 2 == 0 ? unit_interval(r[0], r[1]) : unit_interval(r[2], r[3]);
}

uint32_t RandomStream::bits(uint64_t index, uint64_t step) const {
  return philox(key_, index / 4, step)[index % 4];
}

double RandomStream::normal(uint64_t index, uint64_t step) const {
  const auto r = philox(key_, index / 2, step);
  const double u = 1.0 - unit_interval(r[0], r[1]);  // in (0, 1]: the logarithm is finite
  const double angle = 2.0 * std::numbers::pi * unit_interval(r[2], r[3]);
  return std::sqrt(-2.0 * std::log(u)) * (index % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

}  // namespace phalanx
