// What a user can mend: bad input, a missing file, a dead rank.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "phalanx/base/text.h"

namespace phalanx {

/// The message says what was wrong, where (file, key, tensor, rank), what was expected and what to do; `main`
/// prints it and exits with status 1.
class Error : public std::runtime_error {
 public:
  template <class... T>
  explicit Error(std::string_view pattern, const T&... values)
      : std::runtime_error(format(pattern, values...)) {}
};

}  // namespace phalanx
