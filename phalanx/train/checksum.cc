#include "phalanx/train/checksum.h"

#include <xxhash.h>

#include <charconv>

#include "phalanx/base/text.h"

namespace phalanx {

uint64_t xxh3(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

uint64_t xxh3(std::string_view text) { return xxh3(std::as_bytes(std::span(text))); }

std::string checksum_text(uint64_t checksum) { return format("{:016x}", checksum); }

std::optional<uint64_t> parse_checksum(std::string_view text) {
  uint64_t checksum = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), checksum, 16);
  if (text.size() != 16 || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return checksum;
}

}  // namespace phalanx
