#include "phalanx/comm/failure.h"

namespace phalanx {

bool FailureBoard::fail(int rank, std::string_view message) noexcept {
  int expected = kClear;
  if (!state_.compare_exchange_strong(expected, kWriting)) return false;
  rank_ = rank;
  copy_text(text_, message);
  state_.store(kFailed, std::memory_order_seq_cst);
  return true;
}

}  // namespace phalanx
