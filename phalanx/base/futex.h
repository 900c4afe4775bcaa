// Sleeping until a word of memory changes, with a deadline; works between processes that share the word.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace phalanx {

/// Sleeps while `word` is `seen`, at most `timeout`. May return early.
void futex_wait(std::atomic<uint32_t>& word, uint32_t seen, std::chrono::microseconds timeout);
/// Wakes every sleeper on `word`.
void futex_wake(std::atomic<uint32_t>& word);

}  // namespace phalanx
