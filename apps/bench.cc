// phalanx bench: what this machine makes of a training step, of single ops, and of collectives (bench ep: in
// bench_ep.cc).
#include <CLI/CLI.hpp>
#include <memory>

#include "apps/bench_report.h"
#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "phalanx/base/error.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/base/text.h"
#include "phalanx/base/units.h"
#include "phalanx/comm/collective_times.h"
#include "phalanx/comm/launch.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/ops/op_times.h"
#include "phalanx/ops/peak.h"
#include "phalanx/train/profile.h"
#include "phalanx/train/resume.h"

namespace phalanx {
namespace {

using bench::Report;

struct Options {
  std::string json;
  ConfigOptions config = {.path = "configs/nanogpt_cpu.toml"};
  std::string text;
  std::string resume;
  int steps = 15;
  OpShapes shapes;
  int threads = available_cores();
  bool f64 = false;
  int ranks = 2;
  std::string transport = "threads";
  std::string device = "cpu";
};

const char* name_of(TraceKind kind) {
  switch (kind) {
    case TraceKind::product:
      return "products";
    case TraceKind::attention:
      return "attention";
    case TraceKind::elementwise:
      return "elementwise";
    case TraceKind::optimizer:
      return "optimizer";
    case TraceKind::communication:
      return "communication";
    case TraceKind::other:
    case TraceKind::part:
      break;
  }
  return "other";
}

// The columns of a part of a step that takes `step` seconds.
void add_columns(nlohmann::ordered_json& row, const StepPart& part, double step, bool has_floor) {
  row["floor_ms"] = nullptr;
  row["achieved_ms"] = 1e3 * part.achieved;
  row["step_percent"] = 100 * part.achieved / step;
  row["floor_percent"] = nullptr;
  if (has_floor) row["floor_ms"] = 1e3 * part.floor;
  if (has_floor && part.achieved > 0) row["floor_percent"] = 100 * part.floor / part.achieved;
}

void add_time(Report& report, const StepProfile& p) {
  constexpr std::array kKinds = {TraceKind::product,   TraceKind::attention,     TraceKind::elementwise,
                                 TraceKind::optimizer, TraceKind::communication, TraceKind::other};
  const auto add = [&](const char* name, const StepPart& part, bool has_floor) {
    nlohmann::ordered_json row = {{"time", name}};
    add_columns(row, part, p.seconds, has_floor);
    report.add(row);
  };
  if (p.device.is_cuda()) {
    return add("step", {.floor = p.operations / p.matmul_flops, .achieved = p.seconds}, true);
  }
  StepPart step;
  for (const TraceKind kind : kKinds) {
    const StepPart& part = p.parts[static_cast<size_t>(kind)];
    step.floor += part.floor;
    step.achieved += part.achieved;
    add(name_of(kind), part, kind != TraceKind::other);
  }
  add("step", step, true);
}

void add_op_times(Report& report, const StepProfile& p) {
  for (const OpPart& op : p.ops) {
    nlohmann::ordered_json row = {{"op", op.name}, {"kind", name_of(op.kind)}, {"calls", op.calls}};
    add_columns(row, op, p.seconds, op.floor > 0);
    report.add(row);
  }
}

void add_memory(Report& report, const StepProfile& p) {
  const auto add = [&](const char* name, int64_t bytes) {
    report.add({{"memory", name}, {"mib", static_cast<double>(bytes) / (1 << 20)}, {"bytes", bytes}});
  };
  add("weights", p.memory.weights);
  add("gradients", p.memory.gradients_then());
  add("optimizer", p.memory.optimizer);
  add("batch", p.memory.batch);
  add("activations", p.memory.activations);
  add("working", p.memory.working);
  add("sum", p.memory.total());
  add("peak, measured", static_cast<int64_t>(p.measured.peak));
  add("taken from the system", static_cast<int64_t>(p.measured.reserved));
}

void run_train(const Options& o) {
  TrainConfig config = o.config.load();
  if (!o.text.empty()) config.data.text = o.text;
  if (config.parallel.transport != TransportKind::threads) {
    throw Error("bench train runs ranks as threads: parallel.transport {} is for phalanx train",
                transport_name(config.parallel.transport));
  }
  start_device(config);
  const Dataset data = load_dataset(config.data, config.model.context, config.train.seed);
  ProgressLine line(stderr);
  StepProfile profile;
  std::string where;
  run_thread_ranks({.ranks = config.parallel.ranks}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    if (world.rank() == 0) line.show("measuring the machine");
    ProfileOptions options = {.steps = o.steps};
    options.on_step = [&](int done, int steps) { line.show(format("step {}/{}", done, steps)); };
    Resumed from;
    if (!o.resume.empty()) from = resume_run(rank, data.tokenizer(), o.resume, world);
    options.first_step = from.next_step;
    const StepProfile p = profile_steps(rank, data, world, options);
    if (world.rank() != 0) return;
    profile = p;
    const std::string of = p.device.is_cuda() ? "on GPUs" : format("of {} threads", parallel_threads());
    where = format("{} ranks {}, {}", world.size(), of, rank.mesh().layout().text());
    if (!from.path.empty()) where += ", after " + from.path;
  });
  Report report(format("a training step of {}, {}", o.config.path, where));
  add_time(report, profile);
  add_op_times(report, profile);
  add_memory(report, profile);
  report.add({{"step_ms", 1e3 * profile.seconds},
              {"tokens_per_s", profile.tokens_per_s},
              {"step_gflop", profile.operations / 1e9},
              {"matmul_gflop_per_s", profile.matmul_flops / 1e9},
              {"matmul_percent", 100 * profile.gemm_share()},
              {"copy_gb_per_s", profile.copy_speed / 1e9},
              {"sent_mib", static_cast<double>(profile.sent) / (1 << 20)}});
  show(report, o.json);
}

void run_ops(const Options& o) {
  const ThreadScope scope(o.threads);
  const DType dtype = o.f64 ? DType::f64 : DType::f32;
  ProgressLine line(stderr);
  line.show("measuring the machine");
  const double flops = measure_matmul_flops(dtype, kCpu, 2048, 0.5);
  const CopySpeed copy = CopySpeed::measure();
  Report report(format("ops, {}, {} threads", dtype_name(dtype), o.threads));
  measure_ops(o.shapes, dtype, 0.2, [&](const OpTime& t) {
    line.show(t.op + " " + t.shape);
    const double peak = t.counts_operations() ? flops : copy.bytes_per_second(t.work);
    report.add({{"op", t.op},
                {"shape", t.shape},
                {"us", 1e6 * t.seconds},
                {"g_per_s", t.rate() / 1e9},
                {"unit", t.counts_operations() ? "operations" : "bytes"},
                {"peak_g_per_s", peak / 1e9},
                {"peak_percent", 100 * t.rate() / peak}});
  });
  show(report, o.json);
}

// Of tensors on GPUs, one a rank: as threads by direct copies, or over NCCL.
void run_gpu_collectives(const Options& o) {
  const LaunchOptions launch = ranks_of(o.ranks, o.transport, 1);
  const bool threads = launch.transport == TransportKind::threads;
  if (!threads && launch.transport != TransportKind::nccl) {
    throw Error("bench collectives --device cuda runs over --transport threads or nccl, not {}",
                transport_name(launch.transport));
  }
  if (threads) cuda_devices();  // processes start it for themselves, after they are forked
  run_ranks(launch, [&](Group& world) {
    const Device device = device_of_rank(Device::Kind::cuda, world.rank_on_host());
    const DeviceScope scope(device);
    ProgressLine line(stderr);
    Report report(
        format("collectives of GPUs, {} ranks, {}", world.size(), transport_name(launch.transport)));
    CollectiveTimesOptions options = {.sizes = collective_sizes(int64_t{1} << 30), .device = device};
    options.on_time = [&](const CollectiveTime& t) {
      line.show(t.operation + " " + human_bytes(static_cast<uint64_t>(t.bytes)));
      report.add({{"operation", t.operation},
                  {"size", human_bytes(static_cast<uint64_t>(t.bytes))},
                  {"bytes", t.bytes},
                  {"us", 1e6 * t.seconds},
                  {"algorithm_gb_per_s", t.algorithm_bandwidth() / 1e9},
                  {"bus_gb_per_s", t.bus_bandwidth(world.size()) / 1e9}});
    };
    measure_collectives(world, options);
    if (world.rank() == 0) show(report, o.json);
  });
}

void run_collectives(const Options& o) {
  if (o.device == "cuda") return run_gpu_collectives(o);
  if (o.transport == transport_name(TransportKind::nccl))
    throw Error("--transport nccl is for --device cuda");
  const LaunchOptions launch = ranks_of(o.ranks, o.transport, 1);
  run_ranks(launch, [&](Group& world) {
    const bool leads = world.rank() == 0;
    ProgressLine line(stderr);  // on_time is called on rank 0 alone
    Report report(format("collectives, {} ranks, {}", world.size(), transport_name(launch.transport)));
    world.barrier().wait();
    const CopySpeed copy = CopySpeed::measure();  // of each rank while all copy
    CollectiveTimesOptions options = {.sizes = collective_sizes()};
    options.on_time = [&](const CollectiveTime& t) {
      line.show(t.operation + " " + human_bytes(static_cast<uint64_t>(t.bytes)));
      const int64_t traffic = t.memory_traffic(world.size());
      const double floor = copy.seconds(traffic / world.size());
      report.add({{"operation", t.operation},
                  {"size", human_bytes(static_cast<uint64_t>(t.bytes))},
                  {"bytes", t.bytes},
                  {"us", 1e6 * t.seconds},
                  {"algorithm_gb_per_s", t.algorithm_bandwidth() / 1e9},
                  {"copy_percent", 100 * floor / t.seconds}});
    };
    measure_collectives(world, options);
    if (leads) show(report, o.json);
  });
}

void add_ops(CLI::App& bench, const std::shared_ptr<Options>& o) {
  CLI::App& command = add_measurement(bench, "ops", "Ops one by one, beside the machine's speeds", o->json);
  const auto shape = [&command](const char* name, auto& value, const char* what) {
    command.add_option(name, value, what)->capture_default_str()->check(CLI::PositiveNumber);
  };
  shape("--tokens", o->shapes.tokens, "Tokens");
  shape("--context", o->shapes.context, "Tokens of a sequence");
  shape("--width", o->shapes.width, "Of the model");
  shape("--heads", o->shapes.heads, "Attention heads");
  shape("--mlp-width", o->shapes.mlp_width, "Of the MLP");
  shape("--vocabulary", o->shapes.vocabulary, "Tokens of the vocabulary");
  shape("--experts", o->shapes.experts, "Experts");
  shape("--top-k", o->shapes.top_k, "Experts of a token");
  shape("--threads", o->threads, "Threads");
  command.add_flag("--f64", o->f64, "In f64 instead of f32");
  command.footer(
      "Example:\n  phalanx bench ops --tokens 768 --context 64 --width 128 --heads 4 --mlp-width 512");
  command.callback([o] { run_ops(*o); });
}

}  // namespace

void add_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App& bench = *app.add_subcommand(
      "bench", "Measure a training step, ops, collectives or expert parallelism on this machine");
  bench.require_subcommand(1);
  bench.footer("Example:\n  phalanx bench train configs/nanogpt_6x384.toml");

  CLI::App& train =
      add_measurement(bench, "train", "Where the time and the memory of a training step go", o->json);
  o->config.add_to(train);
  train.get_option("config")->required(false)->capture_default_str();
  train.add_option("--text", o->text, "The text to learn, instead of the config's data.text");
  train.add_option(
      "--resume", o->resume,
      "A checkpoint to begin with: a trained router spreads its tokens otherwise than a new one");
  train.add_option("--steps", o->steps, "Steps to measure; their median counts")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  train.footer("Example:\n  phalanx bench train configs/nanogpt_6x384.toml --ranks 2 --json step.json");
  train.callback([o] { run_train(*o); });

  add_ops(bench, o);

  CLI::App& collectives =
      add_measurement(bench, "collectives", "Collectives by size, 8 B to 64 MiB, of GPUs to 1 GiB", o->json);
  add_ranks(collectives, o->ranks, o->transport, {"threads", "process", "nccl"});
  collectives.add_option("--device", o->device, "cpu, or cuda: tensors on NVIDIA GPUs, one a rank")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}));
  collectives.footer(
      "Examples:\n"
      "  phalanx bench collectives --ranks 4 --json collectives.json\n"
      "  mpirun -n 4 phalanx bench collectives\n"
      "  phalanx bench collectives --ranks 2 --device cuda --transport nccl");
  collectives.callback([o] { run_collectives(*o); });
  add_bench_ep(bench);
}

}  // namespace phalanx
