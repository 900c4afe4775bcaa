#include "phalanx/model/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

namespace phalanx {

Utf8Character utf8_at(std::string_view text, size_t at) {
  const std::string_view bytes = text.substr(at, 4);
  utf8proc_int32_t code = -1;
  const utf8proc_ssize_t length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()),
                                                   static_cast<utf8proc_ssize_t>(bytes.size()), &code);
  return length > 0 ? Utf8Character{code, static_cast<size_t>(length)} : Utf8Character{};
}

std::string utf8_text(int32_t code) {
  std::array<utf8proc_uint8_t, 4> bytes{};
  const utf8proc_ssize_t length = utf8proc_encode_char(code, bytes.data());
  return {reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(length)};
}

bool utf8_unfinished(std::string_view bytes) {
  if (bytes.empty() || bytes.size() > 3) return false;
  // The smallest and largest completions: one of them is UTF-8 if any is, for the bounds that some first
  // bytes put on the second are bounds on one side only.
  return std::ranges::any_of(std::array<char, 2>{'\x80', '\xbf'}, [&](char filler) {
    std::string whole(bytes);
    while (whole.size() < 4) {
      whole += filler;
      if (utf8_at(whole, 0).length == whole.size()) return true;
    }
    return false;
  });
}

size_t utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = utf8_at(text, at).length;
    if (length == 0) break;
    at += length;
  }
  return at;
}

}  // namespace phalanx
