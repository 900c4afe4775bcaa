// Dispatch and combine of ep::Buffer between threads beside the same by MPI_Alltoallv and by
// torch.distributed (gloo): bf16 rows of 7168, top 8 of 64 experts, 1024 and 4096 tokens on each of 2 and 4
// ranks.
//
//   phalanx_bench_ep [--torch PYTHON] [--json FILE]     PYTHON has torch; without it gloo is left out
//
// The limit: each token's row must be read once and each (token, rank) pair's row written once, or the
// reverse; the copy of as many bytes by all cores, measured in the same run, is 100 %. The peers get the rows
// alone, no expert numbers and weights. They pack with the kernels of phalanx/ep/layout.h (MPI) or
// index_select (gloo), exchange, and for combine sum what comes back. Rounds of all alternate.
#include <chrono>
#include <cstdlib>
#include <map>
#include <numeric>
#include <sstream>

#include "bench/mpi_peer.h"
#include "bench/report.h"
#include "phalanx/base/median.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/ep/times.h"

namespace phalanx::bench {
namespace {

constexpr int kRounds = 3;
constexpr int kRuns = 9;
constexpr std::array<int64_t, 2> kTokens = {1024, 4096};
constexpr int64_t kWidth = 7168;
constexpr int64_t kTopK = 8;
constexpr int kExperts = 64;

// Seconds by "tokens operation", and the bytes that ours must move.
struct Times {
  std::map<std::string, double> seconds;
  std::map<std::string, double> memory;
};

std::string key(int64_t tokens, std::string_view operation) {
  return std::to_string(tokens) + " " + std::string(operation);
}

Times ours(int ranks) {
  Times times;
  run_thread_ranks({.ranks = ranks}, [&](Group& world) {
    for (const int64_t tokens : kTokens) {
      ep::TimesOptions options = {.runs = kRuns};
      options.shape = {.tokens = tokens, .width = kWidth, .top_k = kTopK, .experts = kExperts};
      for (const ep::OperationTime& t : ep::measure_operations(world, options)) {
        if (world.rank() != 0) continue;
        times.seconds[key(tokens, t.operation)] = t.seconds;
        times.memory[key(tokens, t.operation)] = static_cast<double>(t.memory);
      }
    }
  });
  return times;
}

// Bytes a second at which all cores copy memory.
double copy_speed() {
  double sum = 0;
  run_thread_ranks({.ranks = available_cores(), .threads_per_rank = 1}, [&](Group& world) {
    const double copies = ep::measure_copies(world);
    if (world.rank() == 0) sum = copies;
  });
  return sum;
}

#ifdef PHALANX_HAVE_MPI

// Rows as MPI counts them.
struct MpiRows {
  explicit MpiRows(const PooledVector<int64_t>& rows) : counts(rows.begin(), rows.end()), at(rows.size()) {
    std::exclusive_scan(counts.begin(), counts.end(), at.begin(), 0);
  }
  int sum() const { return std::accumulate(counts.begin(), counts.end(), 0); }
  std::vector<int> counts;
  std::vector<int> at;
};

// One rank's tokens, and where they go.
class MpiExchange {
 public:
  MpiExchange(int64_t tokens, int rank, int ranks)
      : ranks_(ranks), x_(Tensor::zeros({tokens, kWidth}, DType::bf16)) {
    idx_ = ep::random_choices(tokens, kTopK, kExperts, static_cast<uint64_t>(rank));
    MPI_Type_contiguous(static_cast<int>(kWidth), MPI_UINT16_T, &row_);
    MPI_Type_commit(&row_);
  }
  ~MpiExchange() { MPI_Type_free(&row_); }
  MpiExchange(const MpiExchange&) = delete;
  MpiExchange& operator=(const MpiExchange&) = delete;

  void dispatch() {
    layout_ = ep::layout_of(idx_, ep::ExpertMap::even(kExperts, ranks_));
    PooledVector<int64_t> from(static_cast<size_t>(ranks_));
    MPI_Alltoall(layout_.rows.data(), 1, MPI_INT64_T, from.data(), 1, MPI_INT64_T, MPI_COMM_WORLD);
    const MpiRows out(layout_.rows);
    const MpiRows in(from);
    const Tensor packed = Tensor::empty({out.sum(), kWidth}, DType::bf16);
    ep::spread_rows(layout_, x_, bases(packed, out));
    received_ = Tensor::empty({in.sum(), kWidth}, DType::bf16);
    MPI_Alltoallv(packed.raw(), out.counts.data(), out.at.data(), row_, received_.raw(), in.counts.data(),
                  in.at.data(), row_, MPI_COMM_WORLD);
    from_ = from;
  }

  void combine() {
    const MpiRows out(from_);
    const MpiRows in(layout_.rows);
    const Tensor back = Tensor::empty({in.sum(), kWidth}, DType::bf16);
    MPI_Alltoallv(received_.raw(), out.counts.data(), out.at.data(), row_, back.raw(), in.counts.data(),
                  in.at.data(), row_, MPI_COMM_WORLD);
    ep::sum_rows(layout_, bases(back, in), Tensor::empty(x_.shape(), DType::bf16));
  }

 private:
  static std::vector<std::byte*> bases(const Tensor& rows, const MpiRows& of_ranks) {
    std::vector<std::byte*> out;
    for (const int at : of_ranks.at) out.push_back(rows.raw() + int64_t{at} * kWidth * 2);
    return out;
  }

  int ranks_;
  Tensor x_;
  Tensor idx_;
  MPI_Datatype row_{};
  ep::Layout layout_;
  PooledVector<int64_t> from_;
  Tensor received_;
};

double median_of_slowest(FunctionRef<void()> operation) {
  std::vector<double> seconds;
  for (int i = -2; i < kRuns; ++i) {
    const double slowest = seconds_of_slowest(operation);
    if (i >= 0) seconds.push_back(slowest);
  }
  return median(seconds);
}

// Prints "tokens operation seconds" lines.
void measure(int rank, int ranks) {
  for (const int64_t tokens : kTokens) {
    MpiExchange exchange(tokens, rank, ranks);
    const double dispatch = median_of_slowest([&] { exchange.dispatch(); });
    const double combine = median_of_slowest([&] { exchange.combine(); });
    if (rank != 0) continue;
    std::printf("%ld dispatch %.9g\n%ld combine %.9g\n", static_cast<long>(tokens), dispatch,
                static_cast<long>(tokens), combine);
  }
}

#endif

// What a command says in such lines.
Times said_by(const std::string& command) {
  Times times;
  for (const std::string& line : lines_of(command)) {
    std::istringstream in(line);
    int64_t tokens = 0;
    std::string operation;
    double seconds = 0;
    if (in >> tokens >> operation >> seconds) times.seconds[key(tokens, operation)] = seconds;
  }
  return times;
}

// All rounds of one of those that are compared.
struct Rounds {
  std::map<std::string, std::vector<double>> seconds;
  void add(const Times& times) {
    for (const auto& [k, s] : times.seconds) seconds[k].push_back(s);
  }
  double of(const std::string& k) const {
    const auto found = seconds.find(k);
    return found == seconds.end() ? 0 : median(found->second);
  }
};

// Null where there is no peer.
nlohmann::ordered_json number(double value) {
  return value > 0 ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

void compare(Report& report, int ranks, const std::string& self, const std::string& torch) {
  const std::string n = std::to_string(ranks);
  Rounds mine;
  Rounds mpi;
  Rounds gloo;
  std::vector<double> copies;
  Times last;
  for (int round = 0; round < kRounds; ++round) {
    copies.push_back(copy_speed());
    last = ours(ranks);
    mine.add(last);
    mpi.add(said_by(as_mpi_ranks(ranks, self)));
    if (!torch.empty()) gloo.add(said_by(torch + " bench/peers/ep_gloo.py --ranks " + n));
  }
  for (const auto& [k, bytes] : last.memory) {
    const double s = mine.of(k);
    report.add({{"ranks", ranks},
                {"tokens, operation", k},
                {"us", 1e6 * s},
                {"GB/s", bytes / s / 1e9},
                {"share of copies %", 100 * bytes / s / median(copies)},
                {"MPI_Alltoallv us", number(1e6 * mpi.of(k))},
                {"times faster", number(mpi.of(k) / s)},
                {"gloo us", number(1e6 * gloo.of(k))},
                {"than gloo", number(gloo.of(k) / s)}});
  }
}

int compare_all(std::span<char*> arguments) {
  std::string torch;
  for (size_t i = 1; i + 1 < arguments.size(); ++i) {
    if (std::string_view(arguments[i]) == "--torch") torch = arguments[i + 1];
  }
  Report report("dispatch and combine: threads, MPI and gloo");
  for (const int ranks : {2, 4}) compare(report, ranks, arguments[0], torch);
  return report.finish(arguments);
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
#ifdef PHALANX_HAVE_MPI
  if (phalanx::bench::is_peer(argc, argv)) {
    return phalanx::bench::on_mpi_rank(argc, argv, phalanx::bench::measure);
  }
#endif
  return phalanx::bench::compare_all(std::span(argv, static_cast<size_t>(argc)));
}
