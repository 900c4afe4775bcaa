#include "phalanx/base/units.h"

#include <array>

#include "phalanx/base/text.h"

namespace phalanx {

std::string grouped(uint64_t n) {
  std::string s = std::to_string(n);
  for (size_t at = s.size(); at > 3;) {
    at -= 3;
    s.insert(at, ",");
  }
  return s;
}

std::string human_bytes(uint64_t bytes) {
  static constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return format("{} B", bytes);
  double scaled = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (scaled >= 1023.95 && unit + 1 < kUnits.size()) {
    scaled /= 1024;
    ++unit;
  }
  return format("{:.1f} {}", scaled, kUnits[unit]);
}

}  // namespace phalanx
