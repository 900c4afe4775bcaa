// What the system says of a failure.
#pragma once

#include <cerrno>
#include <string>
#include <system_error>

namespace phalanx {

/// "No such file or directory": of the calling thread's last failure, or of `error`.
inline std::string errno_text(int error = errno) { return std::generic_category().message(error); }

}  // namespace phalanx
