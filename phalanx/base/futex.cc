#include "phalanx/base/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace phalanx {

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen, std::chrono::microseconds timeout) {
  static_assert(sizeof(word) == sizeof(uint32_t));
  timespec limit{};
  limit.tv_sec = timeout.count() / 1'000'000;
  limit.tv_nsec = timeout.count() % 1'000'000 * 1000;
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace phalanx
