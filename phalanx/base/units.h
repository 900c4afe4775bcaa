// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace phalanx {

/// Digits in groups of three: "8,388,608".
std::string grouped(uint64_t n);
/// Bytes in the unit that fits: "512 B", "8.0 MiB", "1.5 GiB".
std::string human_bytes(uint64_t bytes);

}  // namespace phalanx
