// What the words of the engine cost: an await, a change of sides in an overlap, a parallel_for, a span. The
// clock is read around batches of calls; rounds of all alternate, medians.
//   phalanx_bench_await [--json FILE]
#include <chrono>
#include <functional>

#include "bench/report.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/base/task.h"
#include "phalanx/base/trace.h"

namespace phalanx::bench {
namespace {

// Something that has always finished.
class Ready final : public Waitable {
 public:
  bool poll() override { return true; }
  void wait() override {}
};

Task<int> leaf(int value) { co_return value; }

Task<int> await_leaves(int n) {
  int sum = 0;
  for (int i = 0; i < n; ++i) sum += co_await leaf(i);
  co_return sum;
}

Task<> suspend(int n) {
  Ready ready;
  for (int i = 0; i < n; ++i) co_await Suspend(ready);
}

Task<> nested(int depth, int n) {
  if (depth > 0) {
    co_await nested(depth - 1, n);
  } else {
    co_await suspend(n);
  }
}

struct Case {
  std::string what;
  int calls;  // of what is measured, in one run
  std::function<void()> run;
};

constexpr auto kNothing = [](int64_t, int64_t) {};

std::vector<Case> cases() {
  constexpr int kCalls = 10000;
  std::vector<Case> all;
  all.push_back({"await of a nested task", kCalls, [] { run(await_leaves(kCalls)); }});
  all.push_back({"wait, at depth 1", kCalls, [] { run(suspend(kCalls)); }});
  all.push_back({"wait, at depth 8", kCalls, [] { run(nested(7, kCalls)); }});
  all.push_back(
      {"change of sides in an overlap", 2 * kCalls, [] { run(overlap(suspend(kCalls), suspend(kCalls))); }});
  all.push_back({"the same, each side at depth 8", 2 * kCalls,
                 [] { run(overlap(nested(7, kCalls), nested(7, kCalls))); }});
  all.push_back({"span, off", kCalls, [] {
                   for (int i = 0; i < kCalls; ++i) const TraceSpan span(TraceKind::product, "span", i);
                 }});
  all.push_back({"span, on", kCalls, [] {
                   static TraceRing ring;
                   const TraceScope scope(&ring);
                   for (int i = 0; i < kCalls; ++i) const TraceSpan span(TraceKind::product, "span", i);
                 }});
  all.push_back({"parallel_for of one range", kCalls, [] {
                   for (int i = 0; i < kCalls; ++i) parallel_for(1, 1, kNothing);
                 }});
  return all;
}

// One run of a parallel_for that has a range for each thread; the threads are there before the clock starts.
double nanoseconds_of_parallel_for(int threads) {
  constexpr int kCalls = 2000;
  const ThreadScope scope(threads);
  for (int i = 0; i < kCalls / 10; ++i) parallel_for(threads, 1, kNothing);
  const int64_t begin = trace_now();
  for (int i = 0; i < kCalls; ++i) parallel_for(threads, 1, kNothing);
  return static_cast<double>(trace_now() - begin) / kCalls;
}

double nanoseconds(const Case& c) {
  const int64_t begin = trace_now();
  c.run();
  return static_cast<double>(trace_now() - begin) / c.calls;
}

double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

int main(std::span<char*> arguments) {
  constexpr int kRounds = 31;
  const std::vector<Case> all = cases();
  std::vector<std::vector<double>> times(all.size());
  std::vector<double> parallel;
  const int threads = available_cores();
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < all.size(); ++i) times[i].push_back(nanoseconds(all[i]));
    parallel.push_back(nanoseconds_of_parallel_for(threads));
  }
  Report report("what an await costs");
  for (size_t i = 0; i < all.size(); ++i) report.add({{"what", all[i].what}, {"ns", median(times[i])}});
  report.add({{"what", "parallel_for of " + std::to_string(threads) + " ranges on as many threads"},
              {"ns", median(parallel)}});
  return report.finish(arguments);
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) { return phalanx::bench::main({argv, static_cast<size_t>(argc)}); }
