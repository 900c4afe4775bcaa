// Threads inside an op. Each rank owns a few (cores ÷ ranks); the libraries below run single-threaded.
#pragma once

#include <cstdint>

#include "phalanx/base/function_ref.h"

namespace phalanx {

/// Calls body(begin, end) for consecutive ranges of `grain` items (the last may be shorter) covering [0, n),
/// on the threads of the calling rank, and returns when all are done. The ranges depend on n and grain alone,
/// so results do not depend on the number of threads. Bodies write disjoint data. The first exception is
/// rethrown.
void parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t begin, int64_t end)> body);

/// Gives the calling thread `threads` threads (itself included) for its parallel_for calls, for this object's
/// lifetime.
class ThreadScope {
 public:
  explicit ThreadScope(int threads);
  ~ThreadScope();
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  void* previous_;
};

/// Threads of the calling rank's parallel_for, itself included.
int parallel_threads();

/// Inside a body: which of those threads runs it, 0 … parallel_threads() − 1 as the caller of parallel_for
/// saw them; 0 is the caller itself. For scratch memory: results must not depend on it.
int parallel_index();

/// Cores that this process may run on.
int available_cores();

}  // namespace phalanx
