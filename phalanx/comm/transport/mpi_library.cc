#include "phalanx/comm/transport/mpi_library.h"

#include <mpi.h>

#include <array>

#include "phalanx/comm/failure.h"

namespace phalanx {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int n = 0;
  MPI_Error_string(code, text.data(), &n);
  throw CommError(format("{} failed: {}", call, text.data()));
}

MpiLibrary::MpiLibrary(int ranks_per_process) : per_process_(ranks_per_process) {
  const bool alone = per_process_ == 1;
  const int wanted = alone ? MPI_THREAD_FUNNELED : MPI_THREAD_SERIALIZED;
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, wanted, &provided), "MPI_Init_thread");
  if (provided < wanted) {
    throw Error("this MPI cannot be used {}",
                alone ? "beside other threads" : "by several threads: start a process for each rank");
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &process_);
  MPI_Comm_size(MPI_COMM_WORLD, &processes_);
  std::array<int, 2> most = {per_process_, -per_process_};
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, most.data(), 2, MPI_INT, MPI_MAX, MPI_COMM_WORLD), "MPI_Allreduce");
  if (most[0] != -most[1]) {
    throw Error("processes of {} ranks and of {}: ask all for the same number", -most[1], most[0]);
  }
  MPI_Comm host = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, process_, MPI_INFO_NULL, &host);
  MPI_Comm_size(host, &processes_on_host_);
  MPI_Comm_rank(host, &process_on_host_);
  MPI_Comm_free(&host);
}

void MpiLibrary::end() { MPI_Finalize(); }

std::string MpiLibrary::from_process_0(std::string text) {
  auto n = static_cast<int>(text.size());
  check_mpi(MPI_Bcast(&n, 1, MPI_INT, 0, MPI_COMM_WORLD), "MPI_Bcast");
  text.resize(static_cast<size_t>(n));
  check_mpi(MPI_Bcast(text.data(), n, MPI_CHAR, 0, MPI_COMM_WORLD), "MPI_Bcast");
  return text;
}

}  // namespace phalanx
