#include "phalanx/train/profile.h"

#include <algorithm>
#include <chrono>

#include "phalanx/model/flops.h"
#include "phalanx/ops/peak.h"

namespace phalanx {
namespace {

// What ranks have sent and received so far, along all axes.
int64_t traffic(Mesh& mesh) {
  int64_t bytes = 0;
  for (int a = 0; a < kAxes; ++a) {
    const Traffic t = mesh.group(static_cast<Axis>(a)).traffic();
    bytes += t.sent + t.received;
  }
  return bytes;
}

double sum_over(Group& group, double value) {
  const Tensor sum = Tensor::of(Shape{1}, std::span<const double>(&value, 1));
  group.all_reduce(sum).wait();
  return sum.data<double>()[0];
}

// What the machine gives one rank while all ranks ask.
struct Speeds {
  double flops;
  CopySpeed copy;
};

Speeds measure(Group& world, DType dtype) {
  world.barrier().wait();
  const double flops = measure_matmul_flops(dtype, 2048, 0.2);
  world.barrier().wait();
  Speeds speeds = {flops, CopySpeed::measure()};
  world.barrier().wait();
  return speeds;
}

struct MeasuredStep {
  double seconds = 0;
  std::array<StepPart, kTraceKinds> parts{};
  StepPart& part(TraceKind kind) { return parts[static_cast<size_t>(kind)]; }
};

double seconds_of(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

// The ops of one step by kind. Spans of ops lie one behind the other; operations in flight have another row.
void account(MeasuredStep& step, const TraceRing& ring, const Speeds& speeds) {
  for (const Span& span : ring.spans()) {
    if (span.row != TraceRow::compute || span.kind == TraceKind::other) continue;
    StepPart& part = step.part(span.kind);
    part.achieved += seconds_of(span.end_ns - span.begin_ns);
    const bool counts_operations = span.kind == TraceKind::product || span.kind == TraceKind::attention;
    part.floor += counts_operations                       ? static_cast<double>(span.detail) / speeds.flops
                  : span.kind == TraceKind::communication ? 0
                                                          : speeds.copy.seconds(span.detail);
  }
  double known = 0;
  for (const StepPart& part : step.parts) known += part.achieved;
  step.part(TraceKind::other).achieved = step.seconds - known;
}

class Profiler {
 public:
  Profiler(RankRun& rank, const Dataset& data) : rank_(rank), data_(data) {}

  /// Runs and measures the next step.
  MeasuredStep step(const Speeds& speeds) {
    ring_.clear();
    const int64_t bytes = traffic(rank_.mesh());
    const int64_t begin = trace_now();
    {
      const TraceScope scope(&ring_);
      train();
    }
    MeasuredStep measured;
    measured.seconds = seconds_of(trace_now() - begin);
    account(measured, ring_, speeds);
    measured.part(TraceKind::communication).floor =
        static_cast<double>(traffic(rank_.mesh()) - bytes) / speeds.copy.of_memory();
    return measured;
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
    const RowShare& share = rank_.share();
    batches_.clear();
    for (int64_t m = 0; m < share.microbatches(); ++m) batches_.push_back(data_.train_batch(next_, m, share));
    const double lr = learning_rate(config.lr, next_, config.train.steps);
    train_step(rank_.trainer(), batches_, lr, static_cast<uint64_t>(next_));
    ++next_;
  }

  RankRun& rank_;
  const Dataset& data_;
  uint64_t room_ = 1 << 12;
  TraceRing ring_{1 << 12};
  std::vector<Batch> batches_;
  int64_t next_ = 0;
};

}  // namespace

StepProfile profile_steps(RankRun& rank, const Dataset& data, Group& world, const ProfileOptions& options) {
  const TrainConfig& config = rank.config();
  const Speeds speeds = measure(world, config.train.dtype);
  auto tell = [&, done = 0]() mutable {
    ++done;
    if (world.rank() == 0 && options.on_step) options.on_step(done, options.warmup + options.steps);
  };
  Profiler profiler(rank, data);
  for (int i = 0; i < options.warmup; ++i) {
    profiler.warm_up();
    tell();
  }
  cpu_allocator().reset_peak();
  std::vector<MeasuredStep> steps;
  for (int i = 0; i < options.steps; ++i) {
    steps.push_back(profiler.step(speeds));
    tell();
  }
  StepProfile profile;
  profile.measured = cpu_allocator().stats();
  const auto median = steps.begin() + std::ssize(steps) / 2;
  std::ranges::nth_element(steps, median, {}, &MeasuredStep::seconds);
  const auto tokens = static_cast<double>(config.train.batch * config.model.context);
  profile.seconds = median->seconds;
  profile.parts = median->parts;
  profile.tokens_per_s = tokens / median->seconds;
  profile.operations = tokens * training_flops_per_token(rank.model().config()).total();
  profile.matmul_flops = sum_over(world, speeds.flops);
  profile.copy_speed = speeds.copy.of_memory();
  profile.memory = memory_account(config, data.tokenizer().vocabulary());
  return profile;
}

}  // namespace phalanx
