#include "phalanx/comm/launch.h"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "phalanx/comm/transport/nccl.h"
#include "phalanx/comm/transport/process.h"
#include "phalanx/comm/transport/threads.h"
#ifdef PHALANX_HAVE_MPI
#include "phalanx/comm/transport/mpi.h"
#endif

namespace phalanx {
namespace {

const char* variable(const char* name) { return std::getenv(name); }

int number(const char* name) {
  const char* text = variable(name);
  int value = -1;
  const char* end = text ? text + std::strlen(text) : nullptr;
  if (!text || std::from_chars(text, end, value).ptr != end || value < 0) {
    throw Error("the launcher's variable {} is \"{}\"; it must be a number", name, text ? text : "");
  }
  return value;
}

// The variables of one launcher for rank and number of ranks.
struct Names {
  const char* rank;
  const char* ranks;
};
constexpr Names kMpiLaunchers[] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},  // mpirun of OpenMPI
                                   {"PMI_RANK", "PMI_SIZE"},        // mpirun of MPICH and Intel
                                   {"PMIX_RANK", "SLURM_NTASKS"}};  // srun --mpi=pmix

// What lies over the transport that joins the processes.
WrapTransport wrap_of(const LaunchOptions& options) {
  if (options.transport != TransportKind::nccl) return {};
  if constexpr (kHaveCuda) return over_nccl(options.deadlines);
  throw Error("transport nccl in a build of Phalanx without CUDA: build with `cmake --preset cuda`");
}

// Rank 0 of a world that torchrun (or a user with its variables) has started also serves its hub.
void join_launched(const Launched& place, const LaunchOptions& options, const RankBody& body) {
  const ProcessPlace mine{.rank = place.rank,
                          .ranks = place.ranks,
                          .address = place.address,
                          .port = place.port,
                          .key = "phalanx",
                          .threads_per_rank = options.threads_per_rank,
                          .deadlines = options.deadlines,
                          .wrap = wrap_of(options)};
  if (place.rank != 0) return join_process_ranks(mine, body);
  Hub hub({.listener = listen_at(place.address, place.port).first,
           .ranks = place.ranks,
           .key = mine.key,
           .meeting = mine.meeting,
           .liveness = options.deadlines.liveness});
  std::exception_ptr error;
  try {
    join_process_ranks(mine, body);
  } catch (...) {
    error = std::current_exception();
  }
  hub.finish();  // the others' news comes through here
  if (error) std::rethrow_exception(error);
}

void run_launched(const Launched& place, const LaunchOptions& options, const RankBody& body) {
  const bool nccl = options.transport == TransportKind::nccl;
  const bool mpi = place.transport == TransportKind::mpi && !nccl;
  const bool fits = mpi ? options.ranks % place.ranks == 0 : options.ranks == place.ranks;
  if ((options.transport != place.transport && !nccl) || !fits) {
    throw Error(
        "a launcher has started {} processes for transport {}, but {} ranks over {} are asked for: leave "
        "parallel.ranks and parallel.transport to it{}",
        place.ranks, transport_name(place.transport), options.ranks, transport_name(options.transport),
        mpi ? ", or ask for a multiple of the processes, whose threads are then the ranks" : "");
  }
  if (place.transport == TransportKind::process) return join_launched(place, options, body);
#ifdef PHALANX_HAVE_MPI
  run_mpi_ranks({.ranks_per_process = options.ranks / place.ranks,
                 .threads_per_rank = options.threads_per_rank,
                 .deadlines = options.deadlines,
                 .wrap = wrap_of(options)},
                body);
#endif
}

}  // namespace

const char* transport_name(TransportKind kind) {
  static constexpr const char* kNames[] = {"threads", "process", "mpi", "nccl"};
  return kNames[static_cast<size_t>(kind)];
}

std::optional<Launched> launched_by() {
  for (const Names& names : kMpiLaunchers) {
    if (!variable(names.rank) || !variable(names.ranks)) continue;
    const Launched place{.rank = number(names.rank), .ranks = number(names.ranks)};
    if (place.ranks < 2) continue;
#ifndef PHALANX_HAVE_MPI
    throw Error(
        "{} ranks were started by an MPI launcher, but this build has no MPI: install libopenmpi-dev and "
        "build again, or leave the launcher out",
        place.ranks);
#endif
    return place;
  }
  if (!variable("RANK") || !variable("WORLD_SIZE") || !variable("MASTER_ADDR") || !variable("MASTER_PORT")) {
    return std::nullopt;
  }
  const Launched place{.transport = TransportKind::process,
                       .rank = number("RANK"),
                       .ranks = number("WORLD_SIZE"),
                       .address = variable("MASTER_ADDR"),
                       .port = number("MASTER_PORT")};
  return place.ranks < 2 ? std::nullopt : std::optional(place);
}

void run_ranks(const LaunchOptions& options, const RankBody& body) {
  if (const std::optional<Launched> place = launched_by()) return run_launched(*place, options, body);
  switch (options.transport) {
    case TransportKind::threads:
      return run_thread_ranks({.ranks = options.ranks,
                               .threads_per_rank = options.threads_per_rank,
                               .deadlines = options.deadlines},
                              body);
    case TransportKind::process:
    case TransportKind::nccl:
      return run_process_ranks({.ranks = options.ranks,
                                .threads_per_rank = options.threads_per_rank,
                                .deadlines = options.deadlines,
                                .wrap = wrap_of(options)},
                               body);
    case TransportKind::mpi:
      throw Error(
          "parallel.transport is mpi, but no launcher has started this process: mpirun -n {} phalanx …",
          options.ranks);
  }
}

}  // namespace phalanx
