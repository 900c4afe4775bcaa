// Ranks as processes of one host. They meet at a TCP address, and then share memory: pages, a failure board,
// and a ring of bytes for each pair of ranks. A message is two copies: into the ring, and out of it.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "phalanx/comm/lifeline/hub.h"
#include "phalanx/comm/rank.h"

namespace phalanx {

/// A place in a world of processes.
struct ProcessPlace {
  int rank = 0;
  int ranks = 1;
  std::string address = "127.0.0.1";  ///< of the hub
  int port = 0;
  std::string key = {};                                         ///< tells worlds apart
  std::chrono::milliseconds meeting = std::chrono::minutes(2);  ///< for all ranks to come
  int threads_per_rank = 0;  ///< of parallel_for; 0: cores ÷ ranks, at least 1
  Deadlines deadlines;
  WrapTransport wrap = {};  ///< of the rank's transport; may be empty
};

/// Runs body(world group) as that rank, in this process, and returns when it has ended. The hub runs
/// elsewhere (start one with serve_ranks, or run_process_ranks does). An exception of the body is rethrown;
/// CommError if another rank has failed, died or been stopped.
void join_process_ranks(const ProcessPlace& place, const RankBody& body);

struct ProcessWorldOptions {
  int ranks = 1;
  int threads_per_rank = 0;  ///< of parallel_for; 0: cores ÷ ranks, at least 1
  Deadlines deadlines;
  WrapTransport wrap = {};  ///< of each rank's transport; may be empty
};

/// How one rank's process has ended.
struct ProcessEnd {
  int status = 0;      ///< 0, or 1 when the body has thrown, or 128 + the signal that killed it
  bool first = false;  ///< its own failure was the world's first
  std::string report;  ///< what it threw
};

/// Forks a process for each rank, each of which runs body(world group), and gives how they ended, by rank.
/// The processes end with this one. SIGINT and SIGTERM that come meanwhile go on to every rank, and to this
/// process when all have ended. Call it while this process has one thread.
std::vector<ProcessEnd> process_ranks_end(const ProcessWorldOptions& options, const RankBody& body);

/// The same; throws Error with the report of the rank that failed first.
void run_process_ranks(const ProcessWorldOptions& options, const RankBody& body);

}  // namespace phalanx
