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

constexpr const char* kSendHalf = ", send half";

// Seconds of the slowest rank, run by run, and bytes sent.
class Runs {
 public:
  Runs(Group& group, int runs) : group_(group), runs_(runs) {}

  // `operation` gives the seconds until each of its halves has ended, `traffic` counts what it sends; the
  // first runs do not count.
  void measure(const std::string& name, FunctionRef<std::array<double, 2>()> operation,
               FunctionRef<Traffic()> traffic) {
    group_.barrier().wait();
    const int64_t before = traffic().sent;
    const std::array<double, 2> mine = operation();
    sent_[name] = traffic().sent - before;
    const Tensor slowest = Tensor::of(Shape{2}, std::span<const double>(mine));
    group_.all_reduce(slowest, Reduce::max).wait();
    if (++calls_[name] <= kWarmUp) return;
    seconds_[name + kSendHalf].push_back(slowest.data<double>()[0]);
    seconds_[name].push_back(slowest.data<double>()[1]);
  }
  bool done(const std::string& name) const { return calls_.at(name) == runs_ + kWarmUp; }
  OperationTime of(const std::string& name) const {
    const std::vector<double>& s = seconds_.at(name);
    return {.operation = name, .seconds = median(s), .p99 = percentile_99(s)};
  }
  // Of all ranks.
  int64_t sent(const std::string& name) const { return reduce_number(group_, sent_.at(name)); }

 private:
  static constexpr int kWarmUp = 5;
  Group& group_;
  int runs_;
  std::map<std::string, int> calls_;
  std::map<std::string, int64_t> sent_;  // in the last run
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

// Bytes of a row, and of its scales.
int64_t row_bytes(int64_t width, DType dtype) {
  const int64_t scales = dtype == DType::f8e4m3 ? 4 * scale_groups(width) : 0;
  return width * static_cast<int64_t>(dtype_size(dtype)) + scales;
}

// Of what the experts make of rows.
DType summed_dtype(const TimesShape& s) { return s.dtype == DType::f8e4m3 ? DType::bf16 : s.dtype; }

Tokens random_tokens(const TimesShape& s, uint64_t seed) {
  const bool fp8 = s.dtype == DType::f8e4m3;
  Tokens tokens = {.x_TD = random_rows(s.tokens, s.width, summed_dtype(s), seed),
                   .topk_idx_TK = random_choices(s.tokens, s.top_k, s.experts, seed),
                   .weights_TK = Tensor::zeros({s.tokens, s.top_k}, DType::f32)};
  if (!fp8) return tokens;
  const Quantized q = quantize(tokens.x_TD, ScaleFormat::f32);
  tokens.x_TD = q.q_TD;
  tokens.scales_TS = q.scales_TS;
  return tokens;
}

// The halves first.
std::vector<OperationTime> latencies(const Runs& measured, Group& group, const TimesShape& s) {
  struct Memory {  // bytes that must be read and written
    const char* operation;
    int64_t row;  // that travels
    int64_t half;
    int64_t whole;
  };
  const int64_t sent = row_bytes(s.width, s.dtype);
  const int64_t row = row_bytes(s.width, summed_dtype(s));
  const int64_t tokens = s.tokens * group.size();
  const int64_t pairs = tokens * s.top_k;
  const std::array<Memory, 3> operations = {
      Memory{"dispatch", sent, tokens * (row + sent), tokens * row + pairs * sent},
      Memory{"combine", row, 0, (tokens + pairs) * row},
      Memory{"copied combine", row, 2 * pairs * row, (tokens + 3 * pairs) * row}};
  std::vector<OperationTime> out;
  for (const Memory& o : operations) {
    out.push_back(measured.of(o.operation + std::string(kSendHalf)));
    out.back().memory = o.half;
  }
  for (const Memory& o : operations) {
    OperationTime& t = out.emplace_back(measured.of(o.operation));
    t.rows = pairs;
    t.logical = pairs * o.row;
    t.memory = o.whole;
    const int64_t moved = measured.sent(o.operation);
    t.sent = group.shares_memory() ? LinkBytes{.inside = moved} : LinkBytes{.between = moved};
  }
  return out;
}

Buffer buffer_of(Group& group, const TimesOptions& o) {
  if (o.ranks_of_node == 0) return Buffer(group, o.shape.experts);
  return Buffer(group, o.shape.experts, {.way = Way::two_level, .ranks_of_node = o.ranks_of_node});
}

}  // namespace

std::vector<double> median_times(Group& group, int runs, std::span<const std::function<void()>> operations) {
  std::vector<std::vector<double>> seconds(operations.size());
  for (int i = -2; i < runs; ++i) {
    for (size_t o = 0; o < operations.size(); ++o) {
      group.barrier().wait();
      const auto begin = Clock::now();
      operations[o]();
      const double mine = std::chrono::duration<double>(Clock::now() - begin).count();
      const double slowest = reduce_number(group, mine, Reduce::max);
      if (i >= 0) seconds[o].push_back(slowest);
    }
  }
  std::vector<double> medians;
  for (const std::vector<double>& s : seconds) medians.push_back(median(s));
  return medians;
}

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
  const bool fp8 = s.dtype == DType::f8e4m3;
  Buffer buffer = buffer_of(group, options);
  const Tokens tokens = random_tokens(s, static_cast<uint64_t>(group.rank()));
  const Dispatched in = run(buffer.dispatch(tokens, DispatchOptions()));
  const Rows y = fp8 ? Rows{dequantize({in.x_RD.data, in.scales_RS}, DType::bf16), in.x_RD.live} : in.x_RD;
  const int64_t rows = reduce_number(group, in.x_RD.count());
  const int64_t row = row_bytes(s.width, s.dtype);
  const int64_t moved = rows + s.tokens * group.size();  // each pair's row, and each token's

  std::vector<OperationTime> times;
  const auto measure = [&](const char* name, int64_t memory, const std::function<void()>& operation) {
    const LinkBytes before = buffer.sent();
    operation();
    const LinkBytes after = buffer.sent();
    OperationTime& t = times.emplace_back();
    t = {.operation = name, .rows = rows, .logical = rows * row, .memory = memory};
    t.sent.inside = reduce_number(group, after.inside - before.inside);
    t.sent.between = reduce_number(group, after.between - before.between);
    t.seconds = median_times(group, options.runs, {&operation, 1}).front();
    if (group.rank() == 0 && options.on_time) options.on_time(t);
  };
  measure("dispatch", moved * row, [&] { run(buffer.dispatch(tokens, DispatchOptions())); });
  measure("cached dispatch", moved * row,
          [&] { run(buffer.dispatch(tokens.x_TD, tokens.scales_TS, in.handle)); });
  const int64_t summed = moved * row_bytes(s.width, y.data.dtype());
  const int64_t quantized = fp8 ? 2 * rows * row : 0;
  measure("combine", summed + quantized,
          [&] { run(buffer.combine(y, in.handle, CombineOptions{.quantize = fp8})); });
  return times;
}

double percentile_99(std::vector<double> values) {
  const auto at = values.begin() + (std::ssize(values) * 99 + 99) / 100 - 1;
  std::ranges::nth_element(values, at);
  return *at;
}

std::vector<OperationTime> measure_low_latency(Group& group, const TimesShape& s, int runs) {
  const auto seed = static_cast<uint64_t>(group.rank());
  const DType dtype = summed_dtype(s);
  LowLatencyOptions options = {.max_tokens = s.tokens, .width = s.width, .dtype = dtype};
  if (dtype != s.dtype) options.fp8 = ScaleFormat::f32;
  LowLatencyBuffer buffer(group, ExpertMap::even(s.experts, group.size()), options);
  const Tensor x_TH = random_rows(s.tokens, s.width, dtype, seed);
  const Tensor idx_TK = random_choices(s.tokens, s.top_k, s.experts, seed);
  const Tensor weights_TK = Tensor::zeros({s.tokens, s.top_k}, dtype == DType::f64 ? DType::f64 : DType::f32);
  const Tensor out_TH = Tensor::empty(x_TH.shape(), dtype);
  const int64_t slots = s.tokens * group.size();
  const Tensor made_LMH = Tensor::zeros({s.experts / group.size(), slots, s.width}, dtype);
  const auto traffic = [&] { return buffer.traffic(); };
  Runs measured(group, runs);
  const auto there_and_back = [&](const std::string& name, bool in_place) {
    std::optional<LowLatencyDispatched> in;
    const auto dispatch = [&] {
      return halves([&] { return buffer.dispatch(x_TH, idx_TK); },
                    [&](LowLatencyDispatched& sent) {
                      sent.hook.wait();
                      in.emplace(std::move(sent));
                    });
    };
    measured.measure("dispatch", dispatch, traffic);
    const Tensor y = in_place ? buffer.combine_buffer(in->handle) : made_LMH;
    const auto combine = [&] {
      return halves([&] { return buffer.combine(y, idx_TK, weights_TK, in->handle, out_TH); },
                    [](Hook& sent) { sent.wait(); });
    };
    measured.measure(name, combine, traffic);
    return measured.done(name);
  };
  while (!there_and_back("combine", true)) {
  }
  while (!there_and_back("copied combine", false)) {
  }
  return latencies(measured, group, s);
}

}  // namespace phalanx::ep
