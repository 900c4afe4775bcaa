// Ranks as threads of one process. Messages are one copy, from the sender's tensor to the receiver's.
#pragma once

#include <memory>

#include "phalanx/comm/rank.h"

namespace phalanx {

struct ThreadWorldOptions {
  int ranks = 1;
  int threads_per_rank = 0;  ///< of parallel_for; 0: cores ÷ ranks, at least 1
  Deadlines deadlines;
};

/// What the ranks of a world of threads share.
class ThreadWorld {
 public:
  explicit ThreadWorld(int ranks);
  ~ThreadWorld();
  ThreadWorld(const ThreadWorld&) = delete;
  ThreadWorld& operator=(const ThreadWorld&) = delete;

  int ranks() const;
  const FailureBoard& failures() const;
  /// One rank's end, for the thread that is that rank; it ends before the world.
  std::unique_ptr<Transport> transport(int rank);

 private:
  friend class ThreadTransport;
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

/// Runs body(world group) on `ranks` threads, each with its own allocator, and returns when all have ended.
/// If a rank throws, the others wake with a CommError, and the first rank's exception is rethrown here.
void run_thread_ranks(const ThreadWorldOptions& options, const RankBody& body);

/// The same with a transport of the caller's making for each rank, over the world's own: fake.h, say.
void run_thread_ranks(const ThreadWorldOptions& options, const WrapTransport& wrap, const RankBody& body);

}  // namespace phalanx
