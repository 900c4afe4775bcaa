// phalanx bench ep: dispatch and combine beside the speed at which this machine copies, as one table of
// everything that is asked for.
#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <optional>

#include "apps/bench_ep_cases.h"
#include "apps/bench_report.h"
#include "apps/console.h"
#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/base/text.h"
#include "phalanx/comm/clock_shift.h"
#include "phalanx/comm/launch.h"
#include "phalanx/ep/overlap_times.h"
#include "phalanx/train/step_trace.h"

namespace phalanx {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string json;
  std::string trace;
  std::string transport = "threads";
  EpChoices choices;
};

// The first ranks of the world, with the cores' threads shared out among them.
struct Stand {
  Group group;
  int threads;
  double copy = 0;  // bytes a second that they copy, all at once
};

// By the number of ranks, those that this rank is part of. Every rank calls it.
std::map<int, Stand> stands_of(Group& world, const std::vector<EpCase>& cases) {
  std::map<int, Stand> stands;
  for (const EpCase& c : cases) {
    if (world.rank() >= c.ranks || stands.contains(c.ranks)) continue;
    std::vector<int> first(static_cast<size_t>(c.ranks));
    std::iota(first.begin(), first.end(), 0);
    const bool all = c.ranks == world.size();
    const int threads = all ? parallel_threads() : std::max(1, available_cores() / c.ranks);
    Stand s = {.group = world.subgroup(format("first {}", c.ranks), first), .threads = threads};
    const ThreadScope scope(threads);
    s.copy = ep::measure_copies(s.group);
    stands.emplace(c.ranks, std::move(s));
  }
  return stands;
}

std::string title(const std::map<int, Stand>& stands, const char* transport) {
  std::string text = format("ep, {}, copies of", transport);
  const char* between = " ";
  for (const auto& [ranks, stand] : stands) {
    text += format("{}{:.1f} GB/s by {}", between, stand.copy / 1e9, ranks);
    between = ", ";
  }
  return text + (stands.rbegin()->first == 1 ? " rank" : " ranks");
}

Json or_null(bool known, double value) { return known ? Json(value) : Json(); }
Json or_null(const std::optional<double>& value, double factor) {
  return value ? Json(factor * *value) : Json();
}

Json row_of(const EpCase& c, const ep::OperationTime& t, double copy) {
  const auto rate = [&](int64_t bytes) {
    return or_null(bytes > 0, static_cast<double>(bytes) / t.seconds / 1e9);
  };
  const bool two_level = c.ranks_of_node > 0;
  const auto number = [](bool known, int64_t value) { return known ? Json(value) : Json(); };
  return {{"mode", c.mode},
          {"ranks", c.ranks},
          {"tokens", c.shape.tokens},
          {"width", c.shape.width},
          {"top_k", c.shape.top_k},
          {"experts", c.shape.experts},
          {"expert_width", number(c.expert_width > 0, c.expert_width)},
          {"dtype", c.dtype},
          {"operation", t.operation},
          {"rows", number(t.rows > 0, t.rows)},
          {"us", 1e6 * t.seconds},
          {"p99_us", or_null(t.p99, 1e6)},
          {"logical_gb_per_s", rate(t.logical)},
          {"wire_gb_per_s", rate(t.sent.inside + t.sent.between)},
          {"memory_gb_per_s", rate(t.memory)},
          {"copy_percent", or_null(t.memory > 0, 100 * static_cast<double>(t.memory) / t.seconds / copy)},
          {"inside_bytes", number(two_level, t.sent.inside)},
          {"between_bytes", number(two_level, t.sent.between)},
          {"hidden_percent", or_null(t.hidden, 100)}};
}

// `trace`, if not null, becomes the timeline of all ranks, on rank 0.
std::vector<ep::OperationTime> measure_overlap(Group& group, const EpCase& c, std::string* trace) {
  const ep::OverlapOptions options = {.shape = c.shape, .expert_width = c.expert_width, .runs = c.runs};
  if (!trace) return ep::measure_overlap(group, options);
  TraceRing ring;
  std::vector<ep::OperationTime> times = ep::measure_overlap(group, options, &ring);
  const ChromeRank rank = {.rank = group.rank(),
                           .name = format("rank {}", group.rank()),
                           .beside = "microbatch 1",
                           .shift_ns = clock_shift(group, clock_host(), [] { return trace_now(); })};
  *trace = gather_trace(ring.spans(), rank, group);
  return times;
}

std::vector<ep::OperationTime> measure(Group& group, const EpCase& c, ProgressLine& line) {
  if (c.mode == "low-latency") return ep::measure_low_latency(group, c.shape, c.runs);
  ep::TimesOptions options = {.shape = c.shape, .runs = c.runs, .ranks_of_node = c.ranks_of_node};
  options.on_time = [&](const ep::OperationTime& t) { line.show(c.text() + ": " + t.operation); };
  return ep::measure_operations(group, options);
}

void run_cases(Group& world, const Options& o, const std::vector<EpCase>& cases, const char* transport) {
  const bool leads = world.rank() == 0;
  ProgressLine line(stderr);
  if (leads) line.show("measuring the machine");
  std::map<int, Stand> stands = stands_of(world, cases);
  bench::Report report(title(stands, transport));
  std::string trace;
  for (size_t i = 0; i < cases.size(); ++i) {
    const EpCase& c = cases[i];
    if (leads) line.show(format("{} of {}: {}", i + 1, cases.size(), c.text()));
    if (world.rank() >= c.ranks) continue;
    Stand& stand = stands.at(c.ranks);
    const ThreadScope scope(stand.threads);
    const std::vector<ep::OperationTime> times =
        c.mode == "overlap" ? measure_overlap(stand.group, c, o.trace.empty() ? nullptr : &trace)
                            : measure(stand.group, c, line);
    for (const ep::OperationTime& t : times) report.add(row_of(c, t, stand.copy));
  }
  world.barrier().wait();  // those that some cases are not for wait here
  if (!leads) return;
  show(report, o.json);
  if (!o.trace.empty()) write_over(o.trace, trace);
}

void check_trace(const std::string& file, const std::vector<EpCase>& cases) {
  if (file.empty()) return;
  const auto overlaps = std::ranges::count(cases, "overlap", &EpCase::mode);
  if (overlaps != 1) {
    throw Error("--trace shows one combination of --mode overlap, here are {}: give one value each",
                overlaps);
  }
  check_can_write(file);
}

void run_ep(Options o) {
  std::vector<int>& ranks = o.choices.ranks;
  const LaunchOptions launch = ranks_of(std::ranges::max(ranks), o.transport, 0);
  if (launched_by()) ranks = {launch.ranks};
  const std::vector<EpCase> cases = ep_cases(o.choices);
  check_trace(o.trace, cases);
  run_ranks(launch, [&](Group& world) { run_cases(world, o, cases, transport_name(launch.transport)); });
}

constexpr const char* kModes =
    "Many tokens, few, many on nodes of several ranks, or a layer whose microbatches take turns";

// Options that take a list, as in 1,2,4.
class Lists {
 public:
  explicit Lists(CLI::App& command) : command_(command) {}

  template <class T>
  void numbers(const char* name, std::vector<T>& values, const char* what, const char* unless) {
    add(name, values, what, unless).check(CLI::PositiveNumber);
  }
  void words(const char* name, std::vector<std::string>& values, const char* what, const char* unless,
             const std::vector<std::string>& allowed) {
    add(name, values, what, unless).check(CLI::IsMember(allowed));
  }

 private:
  template <class T>
  CLI::Option& add(const char* name, std::vector<T>& values, const char* what, const char* unless) {
    return *command_.add_option(name, values, what)->delimiter(',')->default_str(unless);
  }

  CLI::App& command_;
};

}  // namespace

void add_bench_ep(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  CLI::App& command = add_measurement(bench, "ep", "Dispatch and combine of expert parallelism", o->json);
  EpChoices& c = o->choices;
  Lists lists(command);
  lists.words("--mode", c.modes, kModes, "throughput", ep_modes());
  lists.numbers("--ranks", c.ranks,
                "Ranks; under mpirun its processes, or a multiple of them, as threads of each", "2");
  add_transport(command, o->transport);
  lists.numbers("--tokens", c.tokens, "Tokens of each rank", "4096; low-latency: 128; overlap: 512");
  lists.numbers("--width", c.widths, "Elements of a token's row", "7168; overlap: 1024");
  lists.numbers("--top-k", c.top_ks, "Experts of a token", "8");
  lists.numbers("--experts", c.experts, "Experts of all ranks", "64");
  lists.words("--dtype", c.dtypes, "Of the rows; e4m3: FP8 with scales", "bf16; overlap: f32", ep_dtypes());
  const auto number = [&command](const char* name, int& value, const char* what) {
    return command.add_option(name, value, what)->check(CLI::PositiveNumber);
  };
  number("--ranks-of-node", c.ranks_of_node, "Ranks that share a node's memory, in mode two-level");
  number("--expert-width", c.expert_width, "Hidden elements of an expert, in mode overlap")
      ->default_str("256");
  number("--runs", c.runs, "Runs of each operation; their median counts")
      ->default_str("15; low-latency: 200; overlap: 5");
  command.add_option("--trace", o->trace,
                     "Also write a timeline of mode overlap to this file, for Perfetto or chrome://tracing");
  command.footer(
      "Lists such as 1,2,4 give one table, with a row for each combination and operation.\n"
      "Examples:\n"
      "  phalanx bench ep --ranks 4 --tokens 1024\n"
      "  phalanx bench ep --ranks 2,4 --tokens 128,1024 --dtype bf16,e4m3 --json ep.json\n"
      "  phalanx bench ep --ranks 4 --mode throughput,two-level --ranks-of-node 2 --tokens 1024\n"
      "  phalanx bench ep --ranks 4 --mode low-latency\n"
      "  phalanx bench ep --ranks 2 --mode overlap --trace overlap.json\n"
      "  mpirun -n 2 phalanx bench ep --tokens 1024\n"
      "  mpirun -n 2 phalanx bench ep --ranks 4 --mode two-level --ranks-of-node 2 --tokens 1024");
  command.callback([o] { run_ep(*o); });
}

}  // namespace phalanx
