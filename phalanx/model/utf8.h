// Characters of UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace phalanx {

/// A character and the bytes it takes. length 0: those bytes are no UTF-8 (also: overlong, surrogates, cut
/// short).
struct Utf8Character {
  int32_t code = -1;
  size_t length = 0;
};
/// The character that begins at byte `at` < text.size().
Utf8Character utf8_at(std::string_view text, size_t at);

/// The code point as UTF-8.
std::string utf8_text(int32_t code);

/// True when `bytes` are the beginning of a character that more bytes could complete.
bool utf8_unfinished(std::string_view bytes);

/// Bytes of the longest beginning of `text` that is UTF-8.
size_t utf8_prefix(std::string_view text);

}  // namespace phalanx
