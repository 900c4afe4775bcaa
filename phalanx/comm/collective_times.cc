#include "phalanx/comm/collective_times.h"

#include <algorithm>
#include <chrono>

namespace phalanx {
namespace {

constexpr std::string_view kAllReduce = "all_reduce";
constexpr std::string_view kReduceScatter = "reduce_scatter";
constexpr std::string_view kAllGather = "all_gather";
constexpr std::string_view kAllToAll = "all_to_all";
constexpr std::string_view kBroadcast = "broadcast";
constexpr std::string_view kBarrier = "barrier";

// Calls in one timed batch: about as long for every size.
int calls(int64_t bytes) {
  return static_cast<int>(std::clamp<int64_t>((8 << 20) / std::max<int64_t>(bytes, 1), 1, 1000));
}

// The median seconds of one call, every batch beginning together; the first batch warms up.
double median_time(Group& group, const CollectiveTimesOptions& options, int calls, FunctionRef<void()> call) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds;
  for (int b = -1; b < options.batches; ++b) {
    group.barrier().wait();
    const auto begin = Clock::now();
    for (int i = 0; i < calls; ++i) call();
    synchronise(options.device);
    const double s = std::chrono::duration<double>(Clock::now() - begin).count() / calls;
    if (b >= 0) seconds.push_back(s);
  }
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::ranges::nth_element(seconds, middle);
  return *middle;
}

}  // namespace

int64_t CollectiveTime::memory_traffic(int ranks) const {
  const int64_t all = bytes * ranks;
  const int64_t part = bytes / ranks;
  if (ranks == 1 || operation == kBarrier) return 0;
  if (operation == kAllReduce) return 2 * all;                        // S read and S written on each
  if (operation == kReduceScatter) return all + bytes;                // each reads S, writes S/R
  if (operation == kAllGather) return 2 * (ranks - 1) * bytes;        // S/R copied to R−1 others, by each
  if (operation == kAllToAll) return 2 * (ranks - 1) * part * ranks;  // S/R from each to each other
  return (ranks - 1) * 2 * bytes;                                     // broadcast: S copied R−1 times
}

double CollectiveTime::bus_bandwidth(int ranks) const {
  const double others = static_cast<double>(ranks - 1) / ranks;
  if (operation == kAllReduce) return 2 * others * algorithm_bandwidth();
  return (operation == kBroadcast ? 1 : others) * algorithm_bandwidth();
}

std::vector<int64_t> collective_sizes(int64_t most) {
  std::vector<int64_t> sizes;
  for (int64_t bytes = 8; bytes <= most; bytes *= 8) sizes.push_back(bytes);
  if (sizes.back() != most) sizes.push_back(most);
  return sizes;
}

std::vector<CollectiveTime> measure_collectives(Group& group, const CollectiveTimesOptions& options) {
  std::vector<CollectiveTime> times;
  const auto measure = [&](std::string_view operation, int64_t bytes, FunctionRef<void()> call) {
    const double seconds = median_time(group, options, calls(bytes), call);
    times.push_back({.operation = std::string(operation), .bytes = bytes, .seconds = seconds});
    if (group.rank() == 0 && options.on_time) options.on_time(times.back());
  };
  const int64_t ranks = group.size();
  measure(kBarrier, 0, [&] { group.barrier().wait(); });
  for (const int64_t size : options.sizes) {
    const int64_t rows = (size + 8 * ranks - 1) / (8 * ranks);  // of two f32 on each rank
    const Tensor whole = Tensor::zeros({rows * ranks, 2}, DType::f32, options.device);
    const Tensor part = Tensor::zeros({rows, 2}, DType::f32, options.device);
    const Tensor given = size < 8 * ranks ? Tensor::zeros({size / 4}, DType::f32, options.device) : whole;
    const PooledVector<int64_t> counts(static_cast<size_t>(ranks), rows);
    const auto bytes = static_cast<int64_t>(whole.bytes());
    measure(kAllReduce, static_cast<int64_t>(given.bytes()), [&] { group.all_reduce(given).wait(); });
    measure(kReduceScatter, bytes, [&] { group.reduce_scatter(whole).wait(); });
    measure(kAllGather, bytes, [&] { group.all_gather(part).wait(); });
    measure(kAllToAll, bytes, [&] { group.all_to_all(whole, counts, counts).wait(); });
    measure(kBroadcast, static_cast<int64_t>(given.bytes()), [&] { group.broadcast(given, 0).wait(); });
  }
  return times;
}

}  // namespace phalanx
