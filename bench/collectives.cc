// all_reduce between threads beside OpenMPI's over shared memory: f32, sum, in place, on 2 and 4 ranks.
//
// The limit: an all_reduce of S bytes on R ranks must read R·S bytes and write R·S bytes, whoever does it,
// and so does a negation of R·S bytes in place, by cores that each keep to their own share and wait for
// nobody. Its time, measured here on the same sizes, is the limit, and share = limit ÷ time: 100 % is an
// all_reduce as fast as memory (or the caches that hold so much) allows. Rounds of all alternate.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <thread>

#include "bench/mpi_peer.h"
#include "bench/report.h"
#include "phalanx/base/median.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/ops/elementwise.h"

namespace phalanx::bench {
namespace {

constexpr std::array<int64_t, 9> kSizes = {8,       1 << 10, 16 << 10, 64 << 10, 256 << 10,
                                           1 << 20, 4 << 20, 16 << 20, 64 << 20};
constexpr int kRounds = 5;
constexpr int kBatches = 7;  // a round's figure is their median

// Operations in one timed batch: about as long for every size.
int batch(int64_t bytes) { return static_cast<int>(std::clamp<int64_t>((8 << 20) / bytes, 1, 2000)); }

// The median seconds of one call of `operation`, every batch beginning together.
template <class Operation, class Barrier>
double timed(int64_t bytes, Operation operation, Barrier barrier) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds;
  for (int b = -1; b < kBatches; ++b) {  // the first one warms up
    barrier();
    const auto begin = Clock::now();
    for (int i = 0; i < batch(bytes); ++i) operation();
    const double s = std::chrono::duration<double>(Clock::now() - begin).count() / batch(bytes);
    if (b >= 0) seconds.push_back(s);
  }
  return median(seconds);
}

// Seconds of one all_reduce by size.
using Times = std::map<int64_t, double>;

Times ours(int ranks) {
  Times times;
  run_thread_ranks({.ranks = ranks, .threads_per_rank = 1}, [&](Group& world) {
    for (const int64_t bytes : kSizes) {
      const Tensor x = Tensor::zeros({bytes / 4}, DType::f32);
      const double s = timed(
          bytes, [&] { world.all_reduce(x).wait(); }, [&] { world.barrier().wait(); });
      if (world.rank() == 0) times[bytes] = s;
    }
  });
  return times;
}

#ifdef PHALANX_HAVE_MPI

// Prints "bytes seconds" lines.
void measure(int rank, int /*ranks*/) {
  for (const int64_t bytes : kSizes) {
    const Tensor x = Tensor::zeros({bytes / 4}, DType::f32);
    const auto n = static_cast<int>(x.numel());
    const double s = timed(
        bytes, [&] { MPI_Allreduce(MPI_IN_PLACE, x.raw(), n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); },
        [] { MPI_Barrier(MPI_COMM_WORLD); });
    if (rank == 0) std::printf("%ld %.9g\n", static_cast<long>(bytes), s);
  }
}

#endif

Times openmpi(int ranks, const char* self) {
  Times times;
  for (const std::string& line : lines_of(as_mpi_ranks(ranks, self))) {
    std::istringstream in(line);
    int64_t bytes = 0;
    double seconds = 0;
    if (in >> bytes >> seconds) times[bytes] = seconds;
  }
  return times;
}

// The seconds that all cores need to read `bytes` and write them again in place, each its own share of them.
double limit(int64_t bytes) {
  const int cores = available_cores();
  double seconds = 0;
  run_thread_ranks({.ranks = cores, .threads_per_rank = 1}, [&](Group& world) {
    const Tensor share = Tensor::zeros({bytes / 4 / cores}, DType::f32);
    const double s = timed(
        bytes, [&] { scale_into(share, -1); }, [&] { world.barrier().wait(); });
    if (world.rank() == 0) seconds = s;
  });
  return seconds;
}

std::string size_text(int64_t bytes) {
  if (bytes >= 1 << 20) return std::to_string(bytes >> 20) + " MiB";
  return bytes >= 1 << 10 ? std::to_string(bytes >> 10) + " KiB" : std::to_string(bytes) + " B";
}

int compare(int argc, char** argv) {
  Report report("all_reduce: threads and OpenMPI");
  for (const int ranks : {2, 4}) {
    std::map<int64_t, std::vector<double>> mine;
    std::map<int64_t, std::vector<double>> theirs;
    std::map<int64_t, std::vector<double>> limits;
    for (int round = 0; round < kRounds; ++round) {
      for (const auto& [bytes, s] : ours(ranks)) mine[bytes].push_back(s);
      for (const auto& [bytes, s] : openmpi(ranks, argv[0])) theirs[bytes].push_back(s);
      for (const int64_t bytes : kSizes) {
        if (bytes >= 1 << 20) limits[bytes].push_back(limit(ranks * bytes));
      }
    }
    for (const int64_t bytes : kSizes) {
      const double us = median(mine[bytes]) * 1e6;
      const double mpi_us = theirs[bytes].empty() ? 0 : median(theirs[bytes]) * 1e6;
      const double limit_us = limits[bytes].empty() ? 0 : median(limits[bytes]) * 1e6;
      report.add({{"ranks", ranks},
                  {"size", size_text(bytes)},
                  {"us", us},
                  {"OpenMPI us", mpi_us},
                  {"times faster", mpi_us / us},
                  {"limit us", limit_us},
                  {"share of memory bandwidth %", 100 * limit_us / us}});
    }
  }
  return report.finish(std::span(argv, static_cast<size_t>(argc)));
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
#ifdef PHALANX_HAVE_MPI
  if (phalanx::bench::is_peer(argc, argv)) {
    return phalanx::bench::on_mpi_rank(argc, argv, phalanx::bench::measure);
  }
#endif
  return phalanx::bench::compare(argc, argv);
}
