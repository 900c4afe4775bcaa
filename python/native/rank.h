// One rank of a world as Python sees it: a thread that does what is asked of it, one thing after the other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "phalanx/comm/rank.h"
#include "phalanx/ep/buffer.h"
#include "phalanx/ep/low_latency.h"

namespace phalanx::python {

/// Which buffer of a rank: for how many experts, in equal runs, and whether it looks for more mistakes.
struct BufferKind {
  int experts = 0;
  bool checked = false;
  friend auto operator<=>(const BufferKind&, const BufferKind&) = default;
};

/// Which low-latency buffer of a rank.
struct LowLatencyKind {
  int experts = 0;
  int64_t max_tokens = 0;
  int64_t width = 0;
  DType dtype = DType::bf16;
  std::optional<ScaleFormat> fp8 = {};
  int64_t mask_after_ms = 0;
  friend auto operator<=>(const LowLatencyKind&, const LowLatencyKind&) = default;
};

/// An operation that has been sent and not yet received: its hook, and what must live until then.
struct Pending {
  ep::Hook hook;
  PooledVector<Tensor> kept;
  std::function<void()> then;  // when it has been received
};

/// Threads that know nothing of ranks ask one for something and wait, without the GIL, at once or later. One
/// waits at a time for a call. What is asked for is done in turn. Everything that communicates lives on the
/// rank's own thread, and is destroyed there.
class Rank {
 public:
  using Job = std::function<void(Group& world)>;

  /// What was asked for; the rank's mutex guards it.
  struct Asked {
    Job job;
    std::exception_ptr error;
    bool done = false;
  };

  /// The rank's side: does what is asked until leave() or fail(). After fail() it throws that text as Error.
  void serve(Group& world);
  /// serve() has ended, or never began; with what the world threw, if anything.
  void ended(std::exception_ptr error);

  /// What fn(world) gives, on the rank's thread. Called with the GIL. Throws what fn throws; Error: another
  /// thread asks already, the rank has left, or an earlier call was interrupted by a signal.
  template <class F>
  auto call(F fn) {
    using T = std::invoke_result_t<F&, Group&>;
    auto result = std::make_shared<std::optional<T>>();  // outlives a caller that was interrupted
    ask([result, fn = std::move(fn)](Group& world) mutable { result->emplace(fn(world)); });
    return std::move(**result);
  }
  /// Has it done after all that was asked for before; does not wait. Called with the GIL. Error: as call.
  std::shared_ptr<Asked> post(Job job);
  /// Waits until it is done; with the GIL, which it gives away meanwhile. Throws what the job threw.
  void wait_for(const Asked& asked);
  /// Lets go of something on the rank's thread, since pooled memory goes back to the thread that frees it.
  /// Does not wait.
  void dispose(std::shared_ptr<void> what);

  /// Asks it to end; never waits. Its world ends when all its ranks have.
  void leave();
  /// The same, and the others wake with `why`.
  void fail(const std::string& why);
  /// True when it has ended; waits for that for at most so long. Called without the GIL.
  bool wait_ended(std::chrono::milliseconds limit);
  /// Its number and that of all ranks; waits for the world to begin. Called without the GIL. Error: it did
  /// not.
  std::pair<int, int> place();

  /// The buffer of that kind; on the rank's thread.
  ep::Buffer& buffer(Group& world, const BufferKind& kind);
  ep::LowLatencyBuffer& low_latency(Group& world, const LowLatencyKind& kind);
  /// All that there are; on the rank's thread.
  std::map<LowLatencyKind, std::unique_ptr<ep::LowLatencyBuffer>>& low_latency() { return low_latency_; }

  /// Keeps an operation for receive() or drop(); on the rank's thread. Gives its number.
  int64_t keep(Pending pending);
  /// Receives it; a job's part. Error: it was received before.
  void receive(int64_t number);
  /// Gives it up, and with it the world, unless it was received. Does not wait.
  void drop(int64_t number);

 private:
  void ask(Job job);
  std::shared_ptr<Asked> next();
  void check_open() const;

  std::mutex mutex_;  // of all below, but for what only the rank's thread uses
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Asked>> asked_;
  bool calling_ = false;  // a thread waits for a call
  std::deque<std::shared_ptr<void>> disposed_;
  std::vector<int64_t> dropped_;
  int rank_ = -1;
  int size_ = 0;
  bool leaving_ = false;
  bool ended_ = false;
  bool interrupted_ = false;
  std::string failure_;       // of fail()
  std::exception_ptr error_;  // of ended()

  // The rank's thread's:
  std::map<BufferKind, std::unique_ptr<ep::Buffer>> buffers_;
  std::map<LowLatencyKind, std::unique_ptr<ep::LowLatencyBuffer>> low_latency_;
  std::map<int64_t, Pending> pending_;
  int64_t last_pending_ = 0;
};

/// The end of something that was posted.
class Event {
 public:
  Event(std::shared_ptr<Rank> rank, Rank::Job job)
      : rank_(std::move(rank)), asked_(rank_->post(std::move(job))) {}

  void wait() const { rank_->wait_for(*asked_); }
  /// Whether that rank does what it is asked for after this.
  bool is_of(const Rank& rank) const { return rank_.get() == &rank; }

 private:
  std::shared_ptr<Rank> rank_;
  std::shared_ptr<Rank::Asked> asked_;
};

using Ranks = std::vector<std::shared_ptr<Rank>>;

/// Ranks as threads of this process.
Ranks start_threads(int ranks, int threads_per_rank, double deadline);

/// Where the processes of a world meet: a port of this host, 0 for a free one.
class Meeting {
 public:
  explicit Meeting(int port);
  ~Meeting();
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;

  int port() const { return port_; }
  /// The socket; once.
  int take() { return std::exchange(socket_, -1); }

 private:
  int socket_ = -1;
  int port_ = 0;
};

/// A place among processes of this host.
struct Place {
  int rank = 0;
  int ranks = 1;
  int port = 0;
  std::string key;
  int threads_per_rank = 0;
  double deadline = 0;  // seconds without progress; 0: the library's
};

/// This process as one rank of several of this host, who meet at the meeting of rank 0 (null on the others).
std::shared_ptr<Rank> join_processes(const Place& place, Meeting* meeting);
/// This process as the rank that mpirun or srun made it. Once a process.
std::shared_ptr<Rank> join_mpi(int threads_per_rank, double deadline);

}  // namespace phalanx::python
