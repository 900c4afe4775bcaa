#include "phalanx/ep/times.h"

#include <array>
#include <chrono>
#include <map>
#include <numeric>
#include <optional>
#include <random>

#include "phalanx/base/median.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/gather_numbers.h"
#include "phalanx/ep/low_latency.h"
#include "phalanx/ops/peak.h"

namespace phalanx::ep {
namespace {

using Clock = std::chrono::steady_clock;

// The median seconds until all ranks have done `operation`, which all begin together.
double median_time(Group& group, int runs, FunctionRef<void()> operation) {
  std::vector<double> seconds;
  for (int i = -2; i < runs; ++i) {
    group.barrier().wait();
    const auto begin = Clock::now();
    operation();
    const double mine = std::chrono::duration<double>(Clock::now() - begin).count();
    const double slowest = reduce_number(group, mine, Reduce::max);
    if (i >= 0) seconds.push_back(slowest);
  }
  return median(seconds);
}

// Seconds of the slowest rank, run by run.
class Runs {
 public:
  Runs(Group& group, int runs) : group_(group), runs_(runs) {}

  // `operation` gives the seconds until each of its halves has ended; the first runs do not count.
  void measure(const std::string& name, FunctionRef<std::array<double, 2>()> operation) {
    group_.barrier().wait();
    const std::array<double, 2> mine = operation();
    const Tensor slowest = Tensor::of(Shape{2}, std::span<const double>(mine));
    group_.all_reduce(slowest, Reduce::max).wait();
    if (++calls_[name] <= kWarmUp) return;
    seconds_[name + ", send half"].push_back(slowest.data<double>()[0]);
    seconds_[name].push_back(slowest.data<double>()[1]);
  }
  bool done(const std::string& name) const { return calls_.at(name) == runs_ + kWarmUp; }
  LatencyTime of(const std::string& name, int64_t memory) const {
    const std::vector<double>& s = seconds_.at(name);
    return {.operation = name, .median = median(s), .p99 = percentile_99(s), .memory = memory};
  }

 private:
  static constexpr int kWarmUp = 5;
  Group& group_;
  int runs_;
  std::map<std::string, int> calls_;
  std::map<std::string, std::vector<double>> seconds_;
};

// Seconds that an operation's call takes, and until its hook has run.
template <class Call, class Finish>
std::array<double, 2> halves(Call call, Finish finish) {
  const auto begin = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  auto sent = call();
  const double half = seconds();
  finish(sent);
  return {half, seconds()};
}

}  // namespace

Tensor random_rows(int64_t tokens, int64_t width, DType dtype, uint64_t seed) {
  const Tensor x = Tensor::empty({tokens, width}, dtype);
  std::mt19937_64 random(seed);
  // Floats of any kind near 1: random low bytes, and the high ones of 1.
  const auto item = dtype_size(dtype);
  const uint8_t high = dtype == DType::f16 ? 0x3c : 0x3f;
  for (size_t i = 0; i < x.bytes(); ++i) {
    x.raw()[i] = static_cast<std::byte>(i % item == item - 1 ? high : random() >> 57);
  }
  return x;
}

Tensor random_choices(int64_t tokens, int64_t top_k, int experts, uint64_t seed) {
  const Tensor idx = Tensor::empty({tokens, top_k}, DType::i64);
  std::mt19937_64 random(seed);
  std::vector<int64_t> all(static_cast<size_t>(experts));
  std::iota(all.begin(), all.end(), int64_t{0});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) {
      const auto left = static_cast<uint64_t>(experts - k);
      std::swap(all[static_cast<size_t>(k)], all[static_cast<size_t>(k) + random() % left]);
      idx.data<int64_t>()[t * top_k + k] = all[static_cast<size_t>(k)];
    }
  }
  return idx;
}

double measure_copies(Group& group) {
  constexpr int64_t kBytes = 256 << 20;  // of each rank
  group.barrier().wait();
  return reduce_number(group, group.rank() < available_cores() ? measure_large_copy(kBytes) : 0.0);
}

std::vector<OperationTime> measure_operations(Group& group, const TimesOptions& options) {
  const TimesShape& s = options.shape;
  const auto seed = static_cast<uint64_t>(group.rank());
  Buffer buffer(group, s.experts);
  const Tensor x_TD = random_rows(s.tokens, s.width, s.dtype, seed);
  const Tensor idx_TK = random_choices(s.tokens, s.top_k, s.experts, seed);
  const Tensor weights_TK = Tensor::zeros({s.tokens, s.top_k}, DType::f32);
  const Dispatched in = run(buffer.dispatch(x_TD, idx_TK, weights_TK));
  const int64_t row = s.width * static_cast<int64_t>(dtype_size(s.dtype));
  const int64_t rows = reduce_number(group, in.x_RD.count(), Reduce::sum);

  std::vector<OperationTime> times;
  const auto measure = [&](const char* name, FunctionRef<void()> operation) {
    const int64_t before = group.traffic().sent;
    operation();
    const int64_t sent = reduce_number(group, group.traffic().sent - before, Reduce::sum);
    OperationTime& t = times.emplace_back();
    t = {.operation = name, .seconds = median_time(group, options.runs, operation), .rows = rows};
    t.logical = rows * row;
    t.wire = sent;
    t.memory = (rows + s.tokens * group.size()) * row;
    if (group.rank() == 0 && options.on_time) options.on_time(t);
  };
  measure("dispatch", [&] { run(buffer.dispatch(x_TD, idx_TK, weights_TK)); });
  measure("cached dispatch", [&] { run(buffer.dispatch(x_TD, in.handle)); });
  measure("combine", [&] { run(buffer.combine(in.x_RD, in.handle, Tensor())); });
  return times;
}

double percentile_99(std::vector<double> values) {
  const auto at = values.begin() + (std::ssize(values) * 99 + 99) / 100 - 1;
  std::ranges::nth_element(values, at);
  return *at;
}

std::vector<LatencyTime> measure_low_latency(Group& group, const TimesShape& s, int runs) {
  const auto seed = static_cast<uint64_t>(group.rank());
  LowLatencyBuffer buffer(group, ExpertMap::even(s.experts, group.size()),
                          {.max_tokens = s.tokens, .width = s.width, .dtype = s.dtype});
  const Tensor x_TH = random_rows(s.tokens, s.width, s.dtype, seed);
  const Tensor idx_TK = random_choices(s.tokens, s.top_k, s.experts, seed);
  const Tensor weights_TK =
      Tensor::zeros({s.tokens, s.top_k}, s.dtype == DType::f64 ? DType::f64 : DType::f32);
  const Tensor out_TH = Tensor::empty(x_TH.shape(), s.dtype);
  Runs measured(group, runs);
  const auto there_and_back = [&](const std::string& name, bool in_place) {
    std::optional<LowLatencyDispatched> in;
    measured.measure("dispatch", [&] {
      return halves([&] { return buffer.dispatch(x_TH, idx_TK); },
                    [&](LowLatencyDispatched& sent) {
                      sent.hook.wait();
                      in.emplace(std::move(sent));
                    });
    });
    const Tensor y = in_place ? buffer.combine_buffer(in->handle) : in->recv_LMH;
    measured.measure(name, [&] {
      return halves([&] { return buffer.combine(y, idx_TK, weights_TK, in->handle, out_TH); },
                    [](Hook& sent) { sent.wait(); });
    });
    return measured.done(name);
  };
  while (!there_and_back("combine", true)) {
  }
  while (!there_and_back("copied combine", false)) {
  }
  const int64_t row = s.width * static_cast<int64_t>(dtype_size(s.dtype));
  const int64_t tokens = s.tokens * group.size() * row;
  std::vector<LatencyTime> out;
  for (const char* half : {", send half", ""}) {
    out.push_back(measured.of(std::string("dispatch") + half, *half ? tokens * 2 : tokens * (1 + s.top_k)));
    out.push_back(measured.of(std::string("combine") + half, *half ? 0 : tokens * (1 + s.top_k)));
    out.push_back(measured.of(std::string("copied combine") + half,
                              tokens * s.top_k * 2 + (*half ? 0 : tokens * (1 + s.top_k))));
  }
  return out;
}

}  // namespace phalanx::ep
