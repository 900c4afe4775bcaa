// What benchmarks that compare with MPI have in common: they start themselves again as ranks of mpirun.
#pragma once

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/base/function_ref.h"
#include "phalanx/base/parallel_for.h"

#ifdef PHALANX_HAVE_MPI
#include <mpi.h>
#endif

namespace phalanx::bench {

/// Runs `program --peer` on so many ranks of this host, on the cores that this process may use: where those
/// are fewer than the ranks, who waits gives way, as mpirun has it where it sees no more cores.
inline std::string as_mpi_ranks(int ranks, const std::string& program) {
  const char* waiting = ranks > available_cores() ? "--mca mpi_yield_when_idle 1 " : "";
  return std::string("mpirun --allow-run-as-root --oversubscribe --bind-to none ") + waiting + "-n " +
         std::to_string(ranks) + " " + program + " --peer";
}

/// Whether this is such a rank.
inline bool is_peer(int argc, char** argv) { return argc > 1 && std::string_view(argv[1]) == "--peer"; }

/// What a command prints, errors apart; nothing where it cannot be run.
inline std::vector<std::string> lines_of(const std::string& command) {
  std::vector<std::string> lines;
  FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");  // NOLINT(cert-env33-c): our own command
  if (!pipe) return lines;
  std::array<char, 256> line{};
  while (std::fgets(line.data(), line.size(), pipe)) lines.emplace_back(line.data());
  pclose(pipe);
  return lines;
}

#ifdef PHALANX_HAVE_MPI

/// As one of the processes that mpirun has started, with its share of the cores. Gives the exit status.
template <class Measure>
int on_mpi_rank(int argc, char** argv, Measure measure) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  int ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  {
    const ThreadScope threads(std::max(1, available_cores() / ranks));
    measure(rank, ranks);
  }
  MPI_Finalize();
  return 0;
}

/// The seconds of the slowest rank; all begin together.
inline double seconds_of_slowest(FunctionRef<void()> operation) {
  using Clock = std::chrono::steady_clock;
  MPI_Barrier(MPI_COMM_WORLD);
  const auto begin = Clock::now();
  operation();
  const double mine = std::chrono::duration<double>(Clock::now() - begin).count();
  double slowest = 0;
  MPI_Allreduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return slowest;
}

#endif

}  // namespace phalanx::bench
