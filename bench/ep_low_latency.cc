// The low-latency mode between threads beside MPI_Alltoallv on packed buffers: bf16 rows of 7168, top 8 of 64
// experts, 128 and 8 tokens on each of 4 ranks; median and 99th percentile.
//
//   phalanx_bench_ep_low_latency [--json FILE]
//
// Both send one row for each (token, expert). MPI's sender packs them by expert, tells the counts, exchanges;
// what comes stays as it is, by source rank, then expert (ours is by expert, as experts want it). Its combine
// sends rows from where they lie and makes the weighted sums with our kernel. Rounds of both alternate.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <sstream>

#include "bench/mpi_peer.h"
#include "bench/report.h"
#include "phalanx/base/median.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/ep/times.h"
#include "phalanx/ep/weighted_rows.h"

namespace phalanx::bench {
namespace {

constexpr int kRounds = 5;
constexpr int kRuns = 100;
constexpr int kRanks = 4;
constexpr std::array<int64_t, 2> kTokens = {128, 8};
constexpr int64_t kWidth = 7168;
constexpr int64_t kTopK = 8;
constexpr int kExperts = 64;

struct Figures {
  std::vector<double> median;  // of each round
  std::vector<double> p99;
};
using Times = std::map<std::string, Figures>;  // by "tokens operation"

void ours(Times& times) {
  run_thread_ranks({.ranks = kRanks}, [&](Group& world) {
    for (const int64_t tokens : kTokens) {
      const ep::TimesShape shape = {.tokens = tokens, .width = kWidth, .top_k = kTopK, .experts = kExperts};
      for (const ep::OperationTime& t : ep::measure_low_latency(world, shape, kRuns)) {
        if (world.rank() != 0) continue;
        Figures& f = times[std::to_string(tokens) + " " + t.operation];
        f.median.push_back(t.seconds);
        f.p99.push_back(t.p99.value());
      }
    }
  });
}

#ifdef PHALANX_HAVE_MPI

// One rank's rows by expert, in memory that is allocated once.
class MpiRows {
 public:
  MpiRows(int64_t tokens, int rank, int ranks)
      : ranks_(ranks),
        x_(ep::random_rows(tokens, kWidth, DType::bf16, static_cast<uint64_t>(rank))),
        idx_(ep::random_choices(tokens, kTopK, kExperts, static_cast<uint64_t>(rank))),
        weights_(Tensor::zeros({tokens, kTopK}, DType::f32)),
        packed_(Tensor::empty({tokens * kTopK, kWidth}, DType::bf16)),
        received_(Tensor::empty({tokens * kTopK * ranks, kWidth}, DType::bf16)),
        out_(Tensor::empty({tokens, kWidth}, DType::bf16)),
        row_at_(static_cast<size_t>(tokens * kTopK)) {
    MPI_Type_contiguous(static_cast<int>(kWidth), MPI_UINT16_T, &row_);
    MPI_Type_commit(&row_);
  }
  ~MpiRows() { MPI_Type_free(&row_); }
  MpiRows(const MpiRows&) = delete;
  MpiRows& operator=(const MpiRows&) = delete;

  void dispatch() {
    std::array<int, kExperts> of_expert{};
    for (const int64_t e : idx_.span<int64_t>()) ++of_expert[static_cast<size_t>(e)];
    std::array<int, kExperts> from{};  // by rank, then expert of this one
    MPI_Alltoall(of_expert.data(), kExperts / ranks_, MPI_INT, from.data(), kExperts / ranks_, MPI_INT,
                 MPI_COMM_WORLD);
    std::array<int, kExperts> next{};
    std::exclusive_scan(of_expert.begin(), of_expert.end(), next.begin(), 0);
    for (size_t i = 0; i < row_at_.size(); ++i) {
      row_at_[i] = next[static_cast<size_t>(idx_.data<int64_t>()[i])]++;
      std::memcpy(packed_.raw() + int64_t{row_at_[i]} * kWidth * 2,
                  x_.raw() + static_cast<int64_t>(i) / kTopK * kWidth * 2, kWidth * 2);
    }
    out_rows_ = by_rank(of_expert);
    in_rows_ = by_rank(from);
    exchange(packed_, out_rows_, received_, in_rows_);
  }

  void combine() {
    exchange(received_, in_rows_, packed_, out_rows_);
    std::vector<const std::byte*> rows;
    rows.reserve(row_at_.size());
    for (const int at : row_at_) rows.push_back(packed_.raw() + int64_t{at} * kWidth * 2);
    ep::weighted_rows(rows, weights_, out_);
  }

 private:
  struct Counts {
    std::vector<int> rows;
    std::vector<int> at;
  };
  Counts by_rank(const std::array<int, kExperts>& of_experts) const {
    Counts c{std::vector<int>(static_cast<size_t>(ranks_)), std::vector<int>(static_cast<size_t>(ranks_))};
    for (size_t e = 0; e < of_experts.size(); ++e) c.rows[e * c.rows.size() / kExperts] += of_experts[e];
    std::exclusive_scan(c.rows.begin(), c.rows.end(), c.at.begin(), 0);
    return c;
  }
  void exchange(const Tensor& from, const Counts& out, const Tensor& to, const Counts& in) const {
    MPI_Alltoallv(from.raw(), out.rows.data(), out.at.data(), row_, to.raw(), in.rows.data(), in.at.data(),
                  row_, MPI_COMM_WORLD);
  }

  int ranks_;
  Tensor x_;
  Tensor idx_;
  Tensor weights_;
  Tensor packed_;
  Tensor received_;
  Tensor out_;
  std::vector<int> row_at_;  // of each slot's row in packed_
  MPI_Datatype row_{};
  Counts out_rows_;
  Counts in_rows_;
};

// Prints "tokens operation median p99" lines.
void measure(int rank, int ranks) {
  for (const int64_t tokens : kTokens) {
    MpiRows mpi(tokens, rank, ranks);
    std::vector<double> dispatch;
    std::vector<double> combine;
    for (int i = -5; i < kRuns; ++i) {
      const double there = seconds_of_slowest([&] { mpi.dispatch(); });
      const double back = seconds_of_slowest([&] { mpi.combine(); });
      if (i < 0) continue;
      dispatch.push_back(there);
      combine.push_back(back);
    }
    if (rank != 0) continue;
    std::printf("%ld dispatch %.9g %.9g\n%ld combine %.9g %.9g\n", static_cast<long>(tokens),
                median(dispatch), ep::percentile_99(dispatch), static_cast<long>(tokens), median(combine),
                ep::percentile_99(combine));
  }
}

#endif

// What a command says in such lines.
void said_by(const std::string& command, Times& times) {
  for (const std::string& line : lines_of(command)) {
    std::istringstream in(line);
    int64_t tokens = 0;
    std::string operation;
    double middle = 0;
    double p99 = 0;
    if (!(in >> tokens >> operation >> middle >> p99)) continue;
    Figures& f = times[std::to_string(tokens) + " " + operation];
    f.median.push_back(middle);
    f.p99.push_back(p99);
  }
}

int compare(std::span<char*> arguments) {
  Report report("low latency, 4 ranks: threads and MPI");
  Times mine;
  Times mpi;
  for (int round = 0; round < kRounds; ++round) {
    ours(mine);
    said_by(as_mpi_ranks(kRanks, arguments[0]), mpi);
  }
  for (const auto& [k, f] : mine) {
    const auto theirs = mpi.find(k);
    const bool both = theirs != mpi.end();
    const auto ratio = [&](const std::vector<double>& a, const std::vector<double>& b) {
      return nlohmann::ordered_json(median(a) / median(b));
    };
    report.add({{"tokens, operation", k},
                {"us", 1e6 * median(f.median)},
                {"p99 us", 1e6 * median(f.p99)},
                {"MPI us", both ? nlohmann::ordered_json(1e6 * median(theirs->second.median)) : nullptr},
                {"MPI p99 us", both ? nlohmann::ordered_json(1e6 * median(theirs->second.p99)) : nullptr},
                {"times faster", both ? ratio(theirs->second.median, f.median) : nullptr},
                {"p99", both ? ratio(theirs->second.p99, f.p99) : nullptr}});
  }
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
  return phalanx::bench::compare(std::span(argv, static_cast<size_t>(argc)));
}
