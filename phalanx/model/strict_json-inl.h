// JSON from files that may be damaged or hostile. For .cc files only: it brings the JSON library in.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "phalanx/base/error.h"

namespace phalanx::strict_json {

using Json = nlohmann::json;

/// A name as a message shows it: quoted, control characters and broken UTF-8 escaped, cut when very long.
inline std::string quote_name(std::string_view name) {
  constexpr size_t kLongest = 200;
  std::string s = Json(name.substr(0, kLongest)).dump(-1, ' ', false, Json::error_handler_t::replace);
  if (name.size() > kLongest) s.insert(s.size() - 1, "…");
  return s;
}

/// The text with U+FFFD for what is not UTF-8, so that a message may hold it.
inline std::string as_utf8(std::string_view text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

/// Parses text that comes from `where` (a file). Error: not JSON, not UTF-8, a key that an object has twice,
/// a NUL, a byte order mark, nesting deeper than 16.
inline Json parse(std::string_view text, const std::string& where) {
  constexpr int kDeepest = 16;
  if (text.find('\0') != std::string_view::npos) throw Error("{}: not JSON: it contains a zero byte", where);
  if (text.starts_with("\xEF\xBB\xBF")) throw Error("{}: not JSON: it begins with a byte order mark", where);
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const Json::parser_callback_t on_event = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kDeepest) throw Error("{}: nested deeper than {}", where, kDeepest);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      throw Error("{}: key {} stands there twice", where, quote_name(value.get<std::string>()));
    }
    return true;
  };
  try {
    return Json::parse(text, on_event);
  } catch (const Json::parse_error& e) {
    const std::string what = as_utf8(e.what());
    const size_t after = what.find("parse error");
    throw Error("{}: not JSON: {}", where, after == std::string::npos ? what : what.substr(after));
  }
}

/// What a message says was found: numbers as they stand, the type of anything else.
inline std::string found(const Json& value) { return value.is_number() ? value.dump() : value.type_name(); }

/// The member of that name. Error: `at` is not an object or has none.
inline const Json& member(const Json& at, const char* key, const std::string& where) {
  if (!at.is_object()) throw Error("{}: an object with \"{}\" is expected, found {}", where, key, found(at));
  const auto it = at.find(key);
  if (it == at.end()) throw Error("{}: \"{}\" is missing", where, key);
  return *it;
}

/// A whole number of at most `largest`, written as one. Error otherwise.
inline uint64_t as_count(const Json& value, uint64_t largest, const std::string& where) {
  if (!value.is_number_unsigned())
    throw Error("{}: a whole number is expected, found {}", where, found(value));
  const auto n = value.get<uint64_t>();
  if (n > largest) throw Error("{}: at most {} is expected, found {}", where, largest, n);
  return n;
}

inline const std::string& as_text(const Json& value, const std::string& where) {
  if (!value.is_string()) throw Error("{}: a text is expected, found {}", where, found(value));
  return value.get_ref<const std::string&>();
}

inline const Json& as_object(const Json& value, const std::string& where) {
  if (!value.is_object()) throw Error("{}: an object is expected, found {}", where, found(value));
  return value;
}

inline const Json& as_array(const Json& value, const std::string& where) {
  if (!value.is_array()) throw Error("{}: a list is expected, found {}", where, found(value));
  return value;
}

/// Whole numbers of at most the largest i64.
inline std::vector<int64_t> as_counts(const Json& value, const std::string& where) {
  std::vector<int64_t> counts;
  for (const Json& item : as_array(value, where)) {
    counts.push_back(static_cast<int64_t>(as_count(item, INT64_MAX, where)));
  }
  return counts;
}

}  // namespace phalanx::strict_json
