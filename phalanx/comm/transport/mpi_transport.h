// A rank's transport over MPI. Not for others than mpi_launch.cc.
#pragma once

#include <memory>
#include <vector>

#include "phalanx/comm/lifeline/lifeline.h"
#include "phalanx/comm/transport/host_memory.h"
#include "phalanx/comm/transport/transport.h"

namespace phalanx {

class MpiLibrary;

/// What a rank knows of the world beyond itself.
struct MpiSurroundings {
  MpiSurroundings(int rank, int ranks)
      : memory(rank, ranks), pages(static_cast<size_t>(ranks)), seen(pages.size(), false) {}

  HostMemory memory;      // of the ranks beside this one
  FailureBoard failures;  // this rank's: the lifeline carries failures between ranks
  std::vector<RankPage> pages;
  std::vector<bool> seen;  // pages[r] is rank r's, or was a moment ago
};

/// What it is given outlives it.
std::unique_ptr<Transport> mpi_transport(MpiLibrary& mpi, int rank, MpiSurroundings& around,
                                         Lifeline& lifeline);

}  // namespace phalanx
