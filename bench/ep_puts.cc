// The rows of a dispatch between processes, by messages and by one-sided puts, in plain MPI: bf16 rows of
// 7168, top 8 of 64 experts, 4096 and 128 tokens a rank.
//
//   phalanx_bench_ep_puts [--hosts] [--json FILE]
//
// 2 and 4 ranks of one host, where a window is shared memory; with --hosts (as root, from the top folder) 2
// ranks of two hosts, between which there is TCP (tests/two_hosts.py). All know the counts, as in a cached
// dispatch.
//   messages    packs rows by rank, then MPI_Isend and MPI_Irecv
//   put, fence  puts what is packed, between two fences
//   put, flush  under one lock of all, then flushes, and tells the others by a barrier
//   each row    as that, but row by row from where they are
// Runs of all alternate.
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <sstream>

#include "bench/mpi_peer.h"
#include "bench/report.h"
#include "phalanx/base/median.h"
#include "phalanx/ep/times.h"

namespace phalanx::bench {
namespace {

constexpr int kRuns = 11;
constexpr std::array<int64_t, 2> kTokens = {4096, 128};
constexpr int64_t kWidth = 7168;
constexpr int64_t kRowBytes = 2 * kWidth;
constexpr int64_t kTopK = 8;
constexpr int kExperts = 64;
constexpr std::array<const char*, 4> kWays = {"messages", "put, fence", "put, flush", "each row"};

#ifdef PHALANX_HAVE_MPI

using Counts = std::vector<int64_t>;

Counts sums_before(const Counts& rows) {
  Counts out(rows.size());
  std::exclusive_scan(rows.begin(), rows.end(), out.begin(), int64_t{0});
  return out;
}

// What one number of each rank is to the others.
Counts told(const Counts& to_each) {
  Counts out(to_each.size());
  MPI_Alltoall(to_each.data(), 1, MPI_INT64_T, out.data(), 1, MPI_INT64_T, MPI_COMM_WORLD);
  return out;
}

// One rank's tokens, where they go, and a window for those that come.
class Exchange {
 public:
  Exchange(int64_t tokens, int rank, int ranks)
      : me_(static_cast<size_t>(rank)),
        x_(ep::random_rows(tokens, kWidth, DType::bf16, static_cast<uint64_t>(rank))),
        layout_(ep::layout_of(ep::random_choices(tokens, kTopK, kExperts, static_cast<uint64_t>(rank)),
                              ep::ExpertMap::even(kExperts, ranks))),
        out_rows_(layout_.rows.begin(), layout_.rows.end()),
        out_at_(sums_before(out_rows_)),
        in_rows_(told(out_rows_)),
        in_at_(sums_before(in_rows_)),
        there_at_(told(in_at_)),
        packed_(Tensor::empty({layout_.pairs(), kWidth}, DType::bf16)) {
    MPI_Type_contiguous(static_cast<int>(kWidth), MPI_UINT16_T, &row_);
    MPI_Type_commit(&row_);
    const MPI_Aint bytes = (in_at_.back() + in_rows_.back()) * kRowBytes;
    MPI_Win_allocate(bytes, static_cast<int>(kRowBytes), MPI_INFO_NULL, MPI_COMM_WORLD, &received_, &window_);
    size_ = static_cast<size_t>(bytes);
  }
  ~Exchange() {
    MPI_Win_free(&window_);
    MPI_Type_free(&row_);
  }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  void run(std::string_view way) {
    if (way == "messages") messages();
    if (way == "put, fence") put_and_fence();
    if (way == "put, flush") put_and_flush([&] { pack_and_put(); });
    if (way == "each row") put_and_flush([&] { put_each_row(); });
  }
  std::span<std::byte> received() const { return {received_, size_}; }

 private:
  void pack() {
    std::vector<std::byte*> to;
    for (const int64_t at : out_at_) to.push_back(packed_.raw() + at * kRowBytes);
    to[me_] = received_ + in_at_[me_] * kRowBytes;
    ep::spread_rows(layout_, x_, to);
  }

  template <class F>
  void for_others(F f) const {
    for (size_t r = 0; r < out_rows_.size(); ++r) {
      if (r != me_) f(r);
    }
  }

  void messages() {
    std::vector<MPI_Request> requests;
    for_others([&](size_t r) {
      MPI_Irecv(received_ + in_at_[r] * kRowBytes, static_cast<int>(in_rows_[r]), row_, static_cast<int>(r),
                0, MPI_COMM_WORLD, &requests.emplace_back());
    });
    pack();
    for_others([&](size_t r) {
      MPI_Isend(packed_.raw() + out_at_[r] * kRowBytes, static_cast<int>(out_rows_[r]), row_,
                static_cast<int>(r), 0, MPI_COMM_WORLD, &requests.emplace_back());
    });
    MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  }

  void put(const std::byte* rows, int64_t count, size_t to, int64_t at) const {
    const auto n = static_cast<int>(count);
    MPI_Put(rows, n, row_, static_cast<int>(to), at, n, row_, window_);
  }
  void pack_and_put() {
    pack();
    for_others([&](size_t r) { put(packed_.raw() + out_at_[r] * kRowBytes, out_rows_[r], r, there_at_[r]); });
  }
  void put_and_fence() {
    MPI_Win_fence(MPI_MODE_NOPRECEDE, window_);
    pack_and_put();
    MPI_Win_fence(MPI_MODE_NOSUCCEED, window_);
  }

  void put_each_row() {
    for (int64_t t = 0; t < layout_.tokens(); ++t) {
      const std::byte* const row = x_.raw() + t * kRowBytes;
      const ep::Pairs pairs(layout_, t);
      for (size_t p = 0; p < pairs.ranks.size(); ++p) {
        const auto to = static_cast<size_t>(pairs.ranks[p]);
        if (to == me_) {
          std::memcpy(received_ + (in_at_[me_] + pairs.rows[p]) * kRowBytes, row, kRowBytes);
        } else {
          put(row, 1, to, there_at_[to] + pairs.rows[p]);
        }
      }
    }
  }
  void put_and_flush(FunctionRef<void()> puts) {
    MPI_Win_lock_all(MPI_MODE_NOCHECK, window_);
    puts();
    MPI_Win_flush_all(window_);
    MPI_Barrier(MPI_COMM_WORLD);  // all have written
    MPI_Win_sync(window_);
    MPI_Win_unlock_all(window_);
  }

  size_t me_;
  Tensor x_;
  ep::Layout layout_;
  Counts out_rows_;
  Counts out_at_;
  Counts in_rows_;
  Counts in_at_;     // where the rows from each rank begin
  Counts there_at_;  // where this rank's begin on each
  Tensor packed_;
  MPI_Datatype row_{};
  MPI_Win window_{};
  std::byte* received_ = nullptr;
  size_t size_ = 0;
};

// Ends all ranks where a way has brought other rows than messages.
void check_ways(Exchange& exchange) {
  exchange.run(kWays[0]);
  const Tensor right = Tensor::empty({std::ssize(exchange.received())}, DType::u8);
  std::ranges::copy(exchange.received(), right.raw());
  for (const char* way : kWays) {
    std::ranges::fill(exchange.received(), std::byte{0});
    MPI_Barrier(MPI_COMM_WORLD);
    exchange.run(way);
    if (std::ranges::equal(exchange.received(), std::span(right.raw(), right.bytes()))) continue;
    std::fprintf(stderr, "%s: other rows\n", way);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
}

// Prints "tokens seconds way" lines.
void measure(int rank, int ranks) {
  for (const int64_t tokens : kTokens) {
    Exchange exchange(tokens, rank, ranks);
    check_ways(exchange);
    std::map<std::string, std::vector<double>> seconds;
    for (int i = -1; i < kRuns; ++i) {
      for (const char* way : kWays) {
        const double s = seconds_of_slowest([&] { exchange.run(way); });
        if (i >= 0) seconds[way].push_back(s);
      }
    }
    if (rank != 0) continue;
    for (const auto& [way, s] : seconds) {
      std::printf("%ld %.9g %s\n", static_cast<long>(tokens), median(s), way.c_str());
    }
  }
}

#endif

// Seconds by tokens and way.
using Times = std::map<int64_t, std::map<std::string, double>>;

Times said_by(const std::string& command) {
  Times times;
  for (const std::string& line : lines_of(command)) {
    std::istringstream in(line);
    int64_t tokens = 0;
    double seconds = 0;
    std::string way;
    if (in >> tokens >> seconds && std::getline(in >> std::ws, way)) times[tokens][way] = seconds;
  }
  return times;
}

int compare(std::span<char*> arguments) {
  const std::string self = arguments[0];
  const bool hosts = arguments.size() > 1 && std::string_view(arguments[1]) == "--hosts";
  Report report(hosts ? "a dispatch's rows between two hosts, by messages and puts"
                      : "a dispatch's rows on one host, by messages and puts");
  const std::vector<int> worlds = hosts ? std::vector{2} : std::vector{2, 4};
  for (const int ranks : worlds) {
    Times times =
        said_by(hosts ? "python3 -B tests/two_hosts.py 1 " + self + " --peer" : as_mpi_ranks(ranks, self));
    for (const int64_t tokens : kTokens) {
      nlohmann::ordered_json row = {{"ranks", ranks}, {"tokens", tokens}};
      for (const char* way : kWays) {
        const double s = times[tokens][way];
        row[std::string(way) + " us"] = s > 0 ? nlohmann::ordered_json(1e6 * s) : nullptr;
      }
      const double best =
          std::min({times[tokens][kWays[1]], times[tokens][kWays[2]], times[tokens][kWays[3]]});
      row["best put, times faster"] =
          best > 0 ? nlohmann::ordered_json(times[tokens][kWays[0]] / best) : nullptr;
      report.add(row);
    }
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
