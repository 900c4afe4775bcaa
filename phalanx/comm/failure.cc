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

std::optional<Failure> FailureBoard::first() const {
  if (!failed()) return std::nullopt;
  return Failure{.rank = rank_, .message = text_.data()};
}

}  // namespace phalanx
