// How a world fails: the first error wins, and every waiter of the world wakes with it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <string_view>

#include "phalanx/base/error.h"

namespace phalanx {

/// A rank failed, or its calls do not fit the others'; names rank, operation, its number and group. Thrown on
/// every survivor.
class CommError : public Error {
 public:
  explicit CommError(const std::string& message) : Error("{}", message) {}
};

/// Copies text into a fixed array, cut to its size and closed by a zero.
template <size_t kBytes>
void copy_text(std::array<char, kBytes>& to, std::string_view text) noexcept {
  const size_t n = std::min(text.size(), kBytes - 1);
  std::copy_n(text.begin(), n, to.begin());
  to[n] = '\0';
}

struct Failure {
  int rank = -1;
  std::string message;
};

/// Shared by the ranks of one world. Plain memory, so that processes can share it too.
class FailureBoard {
 public:
  /// Records the world's failure if it is the first; gives whether it was. Texts over the board's size are
  /// cut.
  bool fail(int rank, std::string_view message) noexcept;
  bool failed() const { return state_.load(std::memory_order_seq_cst) == kFailed; }
  /// Who reported first and what it said. None while nobody has, and none while it is being written, which
  /// another whose fail() came second can see.
  std::optional<Failure> first() const;

 private:
  static constexpr int kClear = 0;
  static constexpr int kWriting = 1;
  static constexpr int kFailed = 2;
  std::atomic<int> state_{kClear};
  int rank_ = -1;
  std::array<char, 4096> text_{};
};

}  // namespace phalanx
