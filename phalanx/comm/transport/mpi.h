// Ranks as processes on any hosts, started by mpirun (or srun with PMIx), or as several threads of each,
// reaching each other over MPI. One thread of a process calls MPI at a time. A lifeline over TCP notices that
// a rank has died, stopped or failed, and brings the pages of ranks whose memory is not shared.
#pragma once

#include <chrono>

#include "phalanx/comm/rank.h"

namespace phalanx {

struct MpiOptions {
  int ranks_per_process = 1;  ///< as threads: process p has ranks p·n … p·n + n − 1; alike in all
  std::chrono::milliseconds meeting = std::chrono::minutes(2);  ///< for all ranks to come
  int threads_per_rank = 0;  ///< of parallel_for; 0: cores ÷ ranks on this host, at least 1
  Deadlines deadlines;
  WrapTransport wrap = {};  ///< of each rank's transport; may be empty
};

/// Runs body(world group) as the ranks that the launcher made this process; returns when they have ended.
/// Once a process: MPI begins and ends here. After a failure MPI is left as it is, since ending it would wait
/// for ranks that are gone. An exception of the body is rethrown, that of the lowest rank whose own it was;
/// CommError if only ranks of other processes have failed, died or been stopped.
void run_mpi_ranks(const MpiOptions& options, const RankBody& body);

}  // namespace phalanx
