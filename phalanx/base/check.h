// Broken promises inside the library: always checked, never the user's to mend (those are Error, error.h).
#pragma once

#include <stdexcept>

#include "phalanx/base/text.h"

namespace phalanx {

/// A PHX_CHECK that did not hold. The message names the condition, its place and the values given.
class BrokenPromise : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);
}  // namespace detail

/// PHX_CHECK(cond, "rows {} of {}", row, rows): throws BrokenPromise when `cond` is false. The message is
/// only built then, so a check on a hot path costs one branch.
#define PHX_CHECK(cond, ...)                                                                      \
  do {                                                                                            \
    if (!(cond)) [[unlikely]]                                                                     \
      ::phalanx::detail::check_failed(__FILE__, __LINE__, #cond, ::phalanx::format(__VA_ARGS__)); \
  } while (0)

}  // namespace phalanx
