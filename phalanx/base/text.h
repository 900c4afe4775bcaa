// Message formatting without a formatting library in our headers.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace phalanx {

/// One value of a message; built implicitly and valid for the call only.
class Arg {
 public:
  using Value = std::variant<int64_t, uint64_t, double, bool, std::string_view, std::span<const int64_t>>;

  Arg(bool v) : value_(v) {}
  Arg(std::signed_integral auto v) : value_(static_cast<int64_t>(v)) {}
  Arg(std::unsigned_integral auto v) : value_(static_cast<uint64_t>(v)) {}
  Arg(std::floating_point auto v) : value_(static_cast<double>(v)) {}
  Arg(const char* v) : value_(std::string_view(v)) {}
  Arg(const std::string& v) : value_(std::string_view(v)) {}
  Arg(std::string_view v) : value_(v) {}
  Arg(std::span<const int64_t> v) : value_(v) {}  ///< printed as [2, 3]

  const Value& value() const { return value_; }

 private:
  Value value_;
};

/// Replaces each `{}` (or `{:.3f}`, in fmt's syntax) of `pattern` by the next value.
/// A pattern that does not fit its values is printed as it is, the values behind it: a message never throws.
std::string format_values(std::string_view pattern, std::initializer_list<Arg> values);

template <class... T>
std::string format(std::string_view pattern, const T&... values) {
  return format_values(pattern, {Arg(values)...});
}
/// The same for a literal. A better match than std::format, which newer standard libraries have and which a
/// std::string among the values would find.
template <size_t N, class... T>
std::string format(const char (&pattern)[N], T&&... values) {
  return format_values(pattern, {Arg(values)...});
}

}  // namespace phalanx
