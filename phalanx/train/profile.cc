#include "phalanx/train/profile.h"

#include <algorithm>
#include <functional>
#include <string_view>

#include "phalanx/base/median.h"
#include "phalanx/comm/gather_numbers.h"
#include "phalanx/model/flops.h"
#include "phalanx/ops/peak.h"

namespace phalanx {
namespace {

// What the machine gives one rank while all ranks ask.
struct Speeds {
  double flops = 0;
  CopySpeed copy;
};

// Between how many rounds of steps the matrix-product speed is measured anew. It wanders, on shared machines
// by half within seconds: a share says something only when both sides saw the same machine.
constexpr int kRounds = 5;

double matmul_flops(Group& world, RankRun& rank) {
  const Device device = rank.device();
  world.barrier().wait();
  const double flops =
      measure_matmul_flops(rank.parameters().compute_dtype(), device, device.is_cuda() ? 0 : 2048, 0.2);
  world.barrier().wait();
  return flops;
}

double seconds_of(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

// What is kept of a step until the median one is known.
struct MeasuredStep {
  double seconds = 0;
  std::vector<Span> spans;
  int64_t sent = 0;
  int64_t received = 0;
};

// Of communication the groups' counters know the bytes, not its spans.
double floor_of(const Span& span, const Speeds& speeds) {
  if (span.kind == TraceKind::communication) return 0;
  const bool counts_operations = span.kind == TraceKind::product || span.kind == TraceKind::attention;
  return counts_operations ? static_cast<double>(span.detail) / speeds.flops
                           : speeds.copy.seconds(span.detail);
}

OpPart& part_of(std::vector<OpPart>& ops, const Span& span) {
  const auto known = std::ranges::find(ops, span.name, &OpPart::name);
  if (known != ops.end()) return *known;
  OpPart& added = ops.emplace_back();
  added.name = span.name;
  added.kind = span.kind;
  return added;
}

// Spans of ops lie one behind the other; operations in flight have another row. A GPU's spans, of whose work
// nothing is known, stand for those of its thread.
void account_ops(StepProfile& profile, const MeasuredStep& step, const Speeds& speeds) {
  const bool on_gpu = profile.device.is_cuda();
  for (const Span& span : step.spans) {
    const bool counts = span.kind != TraceKind::other && span.kind != TraceKind::part;
    if (on_gpu ? span.row != TraceRow::device : span.row == TraceRow::comm || !counts) continue;
    OpPart& op = part_of(profile.ops, span);
    op.calls += 1;
    op.achieved += seconds_of(span.end_ns - span.begin_ns);
    if (!on_gpu) op.floor += floor_of(span, speeds);
  }
  std::ranges::sort(profile.ops, std::ranges::greater(), &OpPart::achieved);
}

// Fills in the step's parts.
void account(StepProfile& profile, const MeasuredStep& step, const Speeds& speeds) {
  account_ops(profile, step, speeds);
  if (profile.device.is_cuda()) return;
  double known = 0;
  for (const OpPart& op : profile.ops) {
    StepPart& part = profile.parts[static_cast<size_t>(op.kind)];
    part.achieved += op.achieved;
    part.floor += op.floor;
    known += op.achieved;
  }
  profile.parts[static_cast<size_t>(TraceKind::communication)].floor =
      static_cast<double>(step.sent + step.received) / speeds.copy.of_memory();
  profile.parts[static_cast<size_t>(TraceKind::other)].achieved = step.seconds - known;
}

class Profiler {
 public:
  Profiler(RankRun& rank, const Dataset& data, int64_t first_step)
      : rank_(rank), data_(data), on_device_(rank.device()), next_(first_step) {}

  /// Runs and measures the next step.
  MeasuredStep step() {
    ring_.clear();
    MeasuredStep measured;
    const Traffic before = rank_.mesh().traffic();
    const int64_t begin = trace_now();
    {
      const TraceScope scope(&ring_);
      train();
    }
    measured.seconds = seconds_of(trace_now() - begin);
    const Traffic after = rank_.mesh().traffic();
    measured.sent = after.sent - before.sent;
    measured.received = after.received - before.received;
    measured.spans = ring_.spans();
    return measured;
  }

  /// What the GPU does in the next step, of which its thread then waits for the last op.
  std::vector<Span> step_of_gpu() {
    ring_.clear();
    const TraceScope scope(&ring_);
    const DeviceTraceScope on_device(&on_device_);
    train();
    return on_device_.take();
  }

  /// A step whose spans are only counted: makes room for them.
  void warm_up() {
    ring_.clear();
    const TraceScope scope(&ring_);
    train();
    if (2 * ring_.count() > room_) {
      room_ = 2 * ring_.count();
      ring_ = TraceRing(room_);
    }
  }

 private:
  void train() {
    const TrainConfig& config = rank_.config();
    batches_.clear();
    batches_ = data_.train_batches(next_, rank_.share());
    const double lr = learning_rate(config.lr, next_, config.train.steps);
    train_step(rank_.trainer(), batches_, lr, static_cast<uint64_t>(next_));
    ++next_;
  }

  RankRun& rank_;
  const Dataset& data_;
  uint64_t room_ = 1 << 12;
  TraceRing ring_{1 << 12};
  DeviceTrace on_device_;
  std::vector<Batch> batches_;
  int64_t next_;
};

}  // namespace

StepProfile profile_steps(RankRun& rank, const Dataset& data, Group& world, const ProfileOptions& options) {
  const TrainConfig& config = rank.config();
  auto tell = [&, done = 0]() mutable {
    ++done;
    if (world.rank() == 0 && options.on_step) options.on_step(done, options.warmup + options.steps);
  };
  world.barrier().wait();
  const Device device = rank.device();
  Speeds speeds = {.copy = device.is_cuda() ? CopySpeed::measure_gpu(device) : CopySpeed::measure()};
  Profiler profiler(rank, data, options.first_step);
  for (int i = 0; i < options.warmup; ++i) {
    profiler.warm_up();
    tell();
  }
  allocator_of(device).reset_peak();
  std::vector<MeasuredStep> steps;
  std::vector<double> flops;
  const int steps_a_round = (options.steps + kRounds - 1) / kRounds;
  for (int i = 0; i < options.steps; ++i) {
    if (i % steps_a_round == 0) flops.push_back(matmul_flops(world, rank));
    steps.push_back(profiler.step());
    tell();
  }
  StepProfile profile;
  profile.device = device;
  profile.measured = allocator_of(device).stats();
  speeds.flops = median(flops);
  const auto middle = steps.begin() + std::ssize(steps) / 2;
  std::ranges::nth_element(steps, middle, {}, &MeasuredStep::seconds);
  if (device.is_cuda()) middle->spans = profiler.step_of_gpu();
  account(profile, *middle, speeds);
  const auto tokens = static_cast<double>(config.train.batch * config.model.context);
  profile.seconds = middle->seconds;
  profile.sent = middle->sent;
  profile.tokens_per_s = tokens / middle->seconds;
  profile.operations = tokens * training_flops_per_token(rank.model().config()).total();
  profile.matmul_flops = reduce_number(world, speeds.flops);
  profile.copy_speed = speeds.copy.of_memory();
  profile.memory = memory_account(config, data.tokenizer().vocabulary());
  return profile;
}

}  // namespace phalanx
