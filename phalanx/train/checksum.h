// Checksums of what is saved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace phalanx {

/// XXH3 with 64 bits: finds damage, not intent. https://xxhash.com
uint64_t xxh3(std::span<const std::byte> bytes);
uint64_t xxh3(std::string_view text);

/// As it stands in files: 16 hexadecimal digits; and back (nothing: not such a text).
std::string checksum_text(uint64_t checksum);
std::optional<uint64_t> parse_checksum(std::string_view text);

}  // namespace phalanx
