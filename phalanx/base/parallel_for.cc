#include "phalanx/base/parallel_for.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "phalanx/base/between_ranges.h"
#include "phalanx/base/check.h"

namespace phalanx {
namespace {

thread_local int own_index = 0;  // parallel_index()

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// The threads of one rank. A job is published by raising `generation_`; ranges are claimed from `next_`.
class ThreadPool {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  ~ThreadPool() {
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) {
    body_ = &body;
    n_ = n;
    grain_ = grain;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    claim_ranges();
    for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins > kSpins) std::this_thread::yield();
    }
    body_ = nullptr;
    if (failed_.test()) {
      failed_.clear();
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

 private:
  static constexpr int kSpins = 2000;
  // A worker without a job looks for one this often before it sleeps: about 100 µs, longer than what a step
  // does between two ops. Waking a sleeper costs as much as a small op.
  static constexpr int kPauses = 2000;

  void work(int index) {
    own_index = index;
    uint64_t seen = 0;
    while (true) {
      for (int spins = 0; spins < kPauses && generation_.load(std::memory_order_acquire) == seen; ++spins) {
        pause();
      }
      generation_.wait(seen, std::memory_order_acquire);
      ++seen;  // a job starts only when the last one has ended, so no generation is missed
      if (stop_) return;
      claim_ranges();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void claim_ranges() {
    while (true) {
      const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= n_) return;
      try {
        (*body_)(begin, std::min(begin + grain_, n_));
        BetweenRanges::call();
      } catch (...) {
        if (!failed_.test_and_set()) error_ = std::current_exception();
        next_.store(n_, std::memory_order_relaxed);
      }
    }
  }

  std::vector<std::thread> workers_;
  FunctionRef<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t n_ = 0;
  int64_t grain_ = 1;
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<uint64_t> generation_{0};
  std::atomic_flag failed_;
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
};

thread_local ThreadPool* current = nullptr;

}  // namespace

void parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) {
  PHX_CHECK(grain > 0, "grain {}", grain);
  struct Caller {
    int index = std::exchange(own_index, 0);
    ~Caller() { own_index = index; }
  } caller;
  if (current && n > grain) {
    struct Busy {  // a parallel_for inside a body runs on that body's thread
      ThreadPool* pool = std::exchange(current, nullptr);
      ~Busy() { current = pool; }
    } busy;
    busy.pool->run(n, grain, body);
    return;
  }
  for (int64_t begin = 0; begin < n; begin += grain) {
    body(begin, std::min(begin + grain, n));
    BetweenRanges::call();
  }
}

ThreadScope::ThreadScope(int threads) : previous_(current) {
  current = threads > 1 ? std::make_unique<ThreadPool>(threads).release() : nullptr;
}

ThreadScope::~ThreadScope() {
  const std::unique_ptr<ThreadPool> ended(current);
  current = static_cast<ThreadPool*>(previous_);
}

int parallel_threads() { return current ? current->threads() : 1; }

int parallel_index() { return own_index; }

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace phalanx
