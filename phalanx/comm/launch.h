// How the ranks of a command come to be: threads, processes that it forks, or processes that a launcher has
// started.
#pragma once

#include <optional>
#include <string>

#include "phalanx/comm/rank.h"

namespace phalanx {

/// How ranks reach each other: threads of one process, processes of one host, MPI; or NCCL between GPUs, one
/// for each process, which meet as one host's do or over MPI, as they were started.
enum class TransportKind : uint8_t { threads, process, mpi, nccl };
/// "threads".
const char* transport_name(TransportKind kind);

/// What a launcher says of this process: mpirun (or srun with PMIx) means mpi; torchrun's variables RANK,
/// WORLD_SIZE, MASTER_ADDR and MASTER_PORT mean process.
struct Launched {
  TransportKind transport = TransportKind::mpi;
  int rank = 0;
  int ranks = 1;
  std::string address = {};  ///< process: where rank 0 listens
  int port = 0;
};
/// None when no launcher has started several ranks. Error: a launcher's variable is not a number, or mpirun
/// started this but it was built without MPI.
std::optional<Launched> launched_by();

struct LaunchOptions {
  TransportKind transport = TransportKind::threads;
  int ranks = 1;
  int threads_per_rank = 0;  ///< of parallel_for; 0: cores ÷ ranks, at least 1
  Deadlines deadlines = {};
};

/// Runs body(world group) on every rank and returns when this process's ranks have ended. Under a launcher
/// this process is one rank, and `transport` and `ranks` must be the launcher's; but over MPI `ranks` may be
/// a multiple of its processes, each of which then has as many ranks, as threads. nccl fits any launcher,
/// with a rank for each of its processes. Otherwise threads run here, processes are forked (for nccl, too:
/// CUDA must not have started here), and mpi is an Error that says how to start it. Throws what
/// run_thread_ranks, run_process_ranks and run_mpi_ranks throw.
void run_ranks(const LaunchOptions& options, const RankBody& body);

}  // namespace phalanx
