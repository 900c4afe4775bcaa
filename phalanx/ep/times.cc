#include "phalanx/ep/times.h"

#include <chrono>
#include <numeric>
#include <random>

#include "phalanx/base/median.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/gather_numbers.h"
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

}  // namespace

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

}  // namespace phalanx::ep
