#include "phalanx/base/check.h"

namespace phalanx::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw BrokenPromise(format("{}:{}: {}: {}", file, line, condition, message));
}

}  // namespace phalanx::detail
