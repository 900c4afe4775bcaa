// phalanx bench ep: dispatch and combine beside the speed at which this machine copies.
#include <map>
#include <memory>

#include "apps/bench_report.h"
#include "apps/console.h"
#include "phalanx/base/error.h"
#include "phalanx/base/text.h"
#include "phalanx/comm/launch.h"
#include "phalanx/ep/times.h"

namespace phalanx {
namespace {

const std::map<std::string, DType> kDtypes = {
    {"bf16", DType::bf16}, {"f16", DType::f16}, {"f32", DType::f32}, {"f64", DType::f64}};

struct Options {
  std::string json;
  std::string mode = "throughput";
  std::string transport = "threads";
  int ranks = 2;
  ep::TimesOptions times;
};

void measure(Group& world, const Options& o, const char* transport) {
  const ep::TimesShape& s = o.times.shape;
  ProgressLine line(stderr);
  if (world.rank() == 0) line.show("measuring the machine");
  const double copy = ep::measure_copies(world);
  ep::TimesOptions options = o.times;
  bench::Report report(format(
      "ep, {} ranks, {}, {} tokens of {} {} each, {} of {} experts, copies of {:.1f} GB/s", world.size(),
      transport, s.tokens, s.width, dtype_name(s.dtype), s.top_k, s.experts, copy / 1e9));
  options.on_time = [&](const ep::OperationTime& t) {
    line.show(t.operation);
    const auto rate = [&](int64_t bytes) { return static_cast<double>(bytes) / t.seconds / 1e9; };
    report.add({{"operation", t.operation},
                {"us", 1e6 * t.seconds},
                {"rows", t.rows},
                {"logical_gb_per_s", rate(t.logical)},
                {"wire_gb_per_s", rate(t.wire)},
                {"memory_gb_per_s", rate(t.memory)},
                {"copy_percent", 100 * rate(t.memory) * 1e9 / copy}});
  };
  ep::measure_operations(world, options);
  if (world.rank() == 0) show(report, o.json);
}

void measure_latency(Group& world, const Options& o, const char* transport) {
  const ep::TimesShape& s = o.times.shape;
  bench::Report report(format("ep, low latency, {} ranks, {}, {} tokens of {} {} each, {} of {} experts",
                              world.size(), transport, s.tokens, s.width, dtype_name(s.dtype), s.top_k,
                              s.experts));
  for (const ep::LatencyTime& t : ep::measure_low_latency(world, s, o.times.runs)) {
    report.add({{"operation", t.operation},
                {"median_us", 1e6 * t.median},
                {"p99_us", 1e6 * t.p99},
                {"memory_gb_per_s", static_cast<double>(t.memory) / t.median / 1e9}});
  }
  if (world.rank() == 0) show(report, o.json);
}

void run_ep(Options o) {
  const bool low_latency = o.mode == "low-latency";
  if (o.times.shape.tokens == 0) o.times.shape.tokens = low_latency ? 128 : 4096;
  if (o.times.runs == 0) o.times.runs = low_latency ? 200 : 15;
  const ep::TimesShape& s = o.times.shape;
  if (s.top_k > s.experts) throw Error("--top-k {} of --experts {}", s.top_k, s.experts);
  const LaunchOptions launch = ranks_of(o.ranks, o.transport, 0);
  run_ranks(launch, [&](Group& world) {
    (low_latency ? measure_latency : measure)(world, o, transport_name(launch.transport));
  });
}

}  // namespace

void add_bench_ep(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  CLI::App& command = add_measurement(bench, "ep", "Dispatch and combine of expert parallelism", o->json);
  ep::TimesShape& s = o->times.shape;
  const auto add = [&command](const char* name, auto& value, const char* what) {
    command.add_option(name, value, what)->capture_default_str()->check(CLI::PositiveNumber);
  };
  add_ranks(command, o->ranks, o->transport);
  s.tokens = 0;  // by the mode
  o->times.runs = 0;
  command.add_option("--mode", o->mode, "Many tokens, or few")
      ->capture_default_str()
      ->check(CLI::IsMember({"throughput", "low-latency"}));
  command.add_option("--tokens", s.tokens, "Tokens of each rank")
      ->default_str("4096; low-latency: 128")
      ->check(CLI::PositiveNumber);
  add("--width", s.width, "Elements of a token's row");
  add("--top-k", s.top_k, "Experts of a token");
  add("--experts", s.experts, "Experts of all ranks");
  command.add_option("--runs", o->times.runs, "Runs of each operation; their median counts")
      ->default_str("15; low-latency: 200")
      ->check(CLI::PositiveNumber);
  command.add_option("--dtype", s.dtype, "Of the rows")
      ->default_str("bf16")
      ->transform(CLI::CheckedTransformer(kDtypes));
  command.footer(
      "Examples:\n"
      "  phalanx bench ep --ranks 4 --tokens 1024\n"
      "  phalanx bench ep --ranks 4 --mode low-latency\n"
      "  mpirun -n 2 phalanx bench ep --tokens 1024");
  command.callback([o] { run_ep(*o); });
}

}  // namespace phalanx
