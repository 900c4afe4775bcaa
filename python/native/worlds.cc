// How the ranks of a world begin.
#include <unistd.h>

#include <thread>

#include "phalanx/comm/lifeline/hub.h"
#include "phalanx/comm/transport/process.h"
#include "phalanx/comm/transport/threads.h"
#include "python/native/rank.h"
#ifdef PHALANX_HAVE_MPI
#include "phalanx/comm/transport/mpi.h"
#endif

namespace phalanx::python {
namespace {

Deadlines deadlines_of(double seconds) {
  Deadlines out;
  if (seconds > 0) out.progress = std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
  return out;
}

// Runs `world` on a thread of its own, which nobody joins: at exit the package waits for ended().
template <class F>
void start(Ranks ranks, F world) {
  std::thread([ranks = std::move(ranks), world = std::move(world)]() mutable {
    std::exception_ptr error;
    try {
      world();
    } catch (...) {
      error = std::current_exception();
    }
    for (const auto& rank : ranks) rank->ended(error);
  }).detach();
}

// As join_launched of comm/launch.cc: rank 0 also serves the hub.
void join(const Place& place, int listener, const RankBody& body) {
  const ProcessPlace mine{.rank = place.rank,
                          .ranks = place.ranks,
                          .port = place.port,
                          .key = place.key,
                          .threads_per_rank = place.threads_per_rank,
                          .deadlines = deadlines_of(place.deadline)};
  if (place.rank != 0) return join_process_ranks(mine, body);
  Hub hub(
      {.listener = listener, .ranks = place.ranks, .key = place.key, .liveness = mine.deadlines.liveness});
  std::exception_ptr error;
  try {
    join_process_ranks(mine, body);
  } catch (...) {
    error = std::current_exception();
  }
  hub.finish();
  if (error) std::rethrow_exception(error);
}

}  // namespace

Ranks start_threads(int ranks, int threads_per_rank, double deadline) {
  if (ranks < 1) throw Error("a world of {} ranks", ranks);
  Ranks out;
  for (int r = 0; r < ranks; ++r) out.push_back(std::make_shared<Rank>());
  start(out, [out, options = ThreadWorldOptions{.ranks = ranks,
                                                .threads_per_rank = threads_per_rank,
                                                .deadlines = deadlines_of(deadline)}] {
    run_thread_ranks(options, [&](Group& world) { out[static_cast<size_t>(world.rank())]->serve(world); });
  });
  return out;
}

Meeting::Meeting(int port) { std::tie(socket_, port_) = listen_at("127.0.0.1", port); }

Meeting::~Meeting() {
  if (socket_ >= 0) close(socket_);
}

std::shared_ptr<Rank> join_processes(const Place& place, Meeting* meeting) {
  const int listener = meeting ? meeting->take() : -1;
  if ((place.rank == 0) != (listener >= 0)) throw Error("rank 0, and it alone, brings the meeting, once");
  auto rank = std::make_shared<Rank>();
  start({rank},
        [rank, place, listener] { join(place, listener, [&](Group& world) { rank->serve(world); }); });
  return rank;
}

std::shared_ptr<Rank> join_mpi(int threads_per_rank, double deadline) {
#ifdef PHALANX_HAVE_MPI
  auto rank = std::make_shared<Rank>();
  start({rank}, [rank, options = MpiOptions{.threads_per_rank = threads_per_rank,
                                            .deadlines = deadlines_of(deadline)}] {
    run_mpi_ranks(options, [&](Group& world) { rank->serve(world); });
  });
  return rank;
#else
  throw Error("this build has no MPI ({} threads, {} s)", threads_per_rank, deadline);
#endif
}

}  // namespace phalanx::python
