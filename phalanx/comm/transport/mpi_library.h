// MPI as a whole, for one process: its beginning and end, and who is where. MPI's ranks are our processes.
// Not for others than mpi_transport.cc and mpi_launch.cc.
#pragma once

#include <mutex>
#include <string>

namespace phalanx {

/// Throws CommError, naming the call, unless MPI's code is success.
void check_mpi(int code, const char* call);

class MpiLibrary {
 public:
  /// Begins MPI; collective. Error: processes differ in it, or this MPI cannot be called by several threads.
  explicit MpiLibrary(int ranks_per_process);
  MpiLibrary(const MpiLibrary&) = delete;
  MpiLibrary& operator=(const MpiLibrary&) = delete;

  /// Ends MPI; collective.
  void end();
  /// What process 0 says, to all; collective.
  std::string from_process_0(std::string text);

  int ranks() const { return processes_ * per_process_; }
  int ranks_on_host() const { return processes_on_host_ * per_process_; }
  /// A rank's place among those of its host; of ranks of this process.
  int rank_on_host(int rank) const { return process_on_host_ * per_process_ + rank % per_process_; }
  int per_process() const { return per_process_; }
  int process() const { return process_; }
  int process_of(int rank) const { return rank / per_process_; }
  /// Of letters between two ranks, and of the bytes that follow them.
  int letter_tag(int from, int to) const {
    return 1 + 2 * (from % per_process_ * per_process_ + to % per_process_);
  }
  int bytes_tag(int from, int to) const { return letter_tag(from, to) + 1; }

  /// Held by the one thread that calls MPI.
  std::mutex& mutex() { return mutex_; }

 private:
  int per_process_;
  int process_ = 0;
  int processes_ = 1;
  int processes_on_host_ = 1;
  int process_on_host_ = 0;
  std::mutex mutex_;
};

}  // namespace phalanx
