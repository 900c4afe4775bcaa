#include "phalanx/train/train.h"

#include <chrono>

#include "phalanx/base/error.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/clock_shift.h"
#include "phalanx/comm/gather_numbers.h"
#include "phalanx/model/flops.h"
#include "phalanx/model/hf_weights.h"
#include "phalanx/ops/peak.h"
#include "phalanx/tensor/stream.h"
#include "phalanx/train/agree.h"
#include "phalanx/train/checkpoint_directory.h"
#include "phalanx/train/rank_run.h"
#include "phalanx/train/resume.h"
#include "phalanx/train/same_run.h"

namespace phalanx {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One rank's run from its first step to its last.
class Run {
 public:
  Run(RankRun& rank, const Dataset& data, Group& world, const TrainHooks& hooks)
      : rank_(rank),
        data_(data),
        world_(world),
        hooks_(hooks),
        clock_shift_(clock_shift(world, clock_host(), [] { return trace_now(); })),
        trace_(hooks.trace, clock_shift_, rank.device()) {
    const TokenFlops flops = training_flops_per_token(rank.model().config());
    world.barrier().wait();  // so that all ranks measure at the same time
    machine_flops_ =
        reduce_number(world, measure_matmul_flops(rank.parameters().compute_dtype(), rank.device()));
    step_flops_ = flops.total() * static_cast<double>(tokens_of_step());
    validation_ = data.validation(config().train.eval_batches, rank.share());
  }

  TrainingHistory go(const Resumed& from) {
    const RunConfig& c = config().train;
    last_saved_ = from.path;
    waited_before_ = world_.waited();
    first_step_ = from.next_step;
    check_trace();
    describe();
    for (step_ = from.next_step; step_ < c.steps; ++step_) {
      if (c.eval_every > 0 && step_ % c.eval_every == 0) evaluate_now();
      if (stop_asked()) {
        save_now(step_);
        return take_history();
      }
      named_step();
      if (hooks_.trace.ends_with(step_ - first_step_)) tell_trace();
      if (c.save_every > 0 && (step_ + 1) % c.save_every == 0 && step_ + 1 < c.steps) save_now(step_ + 1);
    }
    evaluate_now();
    save_now(step_);
    return take_history();
  }

 private:
  const TrainConfig& config() const { return rank_.config(); }
  bool leads() const { return world_.rank() == 0; }
  int64_t tokens_of_step() const { return config().train.batch * config().model.context; }

  void describe() {
    const ParameterCount parameters = count_parameters(rank_.model().config());
    history_.parameters = parameters.total;
    history_.active_parameters = parameters.active;
    history_.config = to_toml(config());
    history_.machine =
        format("cores: {}, ranks: {}, threads a rank: {}, layout {}, {:.0f} GFLOP/s in matrix products",
               available_cores(), world_.size(), parallel_threads(), rank_.mesh().layout().text(),
               machine_flops_ / 1e9);
  }

  // The leader's hook decides for all.
  bool stop_asked() {
    const double asked = leads() && hooks_.stop && hooks_.stop() ? 1 : 0;
    return reduce_number(world_, asked) > 0;
  }

  void check_trace() const {
    const TraceSteps& t = hooks_.trace;
    const int64_t steps = config().train.steps - first_step_;
    if (t.count == 0 || t.first < steps) return;
    throw Error("no step to trace: the run has {} steps, and {} of them come before the first traced one",
                steps, t.first);
  }

  void tell_trace() {
    const std::string json = trace_.collect(rank_.mesh(), world_);
    const double lost = reduce_number(world_, static_cast<double>(trace_.lost()));
    if (!leads()) return;
    if (hooks_.on_trace) hooks_.on_trace(json);
    if (lost > 0 && hooks_.on_note) {
      hooks_.on_note(format("the trace lacks its {:.0f} oldest spans: trace fewer steps", lost));
    }
  }

  void train_now() {
    const StepTrace::Scope traced(trace_, step_ - first_step_);
    const char* name = trace_ring() ? trace_ring()->keep(format("step {}", step_)) : "";
    const TracePart part("", name, TracePhase::none);
    const auto start = std::chrono::steady_clock::now();
    batches_.clear();
    batches_ = data_.train_batches(step_, rank_.share());
    const double lr = learning_rate(config().lr, step_, config().train.steps);
    const StepResult result = train_step(rank_.trainer(), batches_, lr, static_cast<uint64_t>(step_));
    const double seconds = seconds_since(start);
    const Pipeline& pipeline = rank_.trainer().pipeline;
    if (pipeline.schedule().ranks > 1) pipelines_.add(step_, seconds, pipeline.records());
    if (!leads()) return;
    history_.seconds += seconds;
    add(history_.phases, result.seconds);
    history_.steps.push_back({.step = step_,
                              .loss = result.loss,
                              .balance_loss = result.balance_loss,
                              .lr = lr,
                              .grad_norm = result.grad_norm,
                              .tokens_per_s = static_cast<double>(tokens_of_step()) / seconds,
                              .gemm_share = step_flops_ / seconds / machine_flops_,
                              .z_loss = result.z_loss,
                              .mtp_loss = result.mtp_loss});
    if (hooks_.on_step) hooks_.on_step(history_.steps.back());
  }

  // Errors say where the run stopped, and what it leaves.
  void named_step() {
    try {
      train_now();
    } catch (const NotFinite& e) {
      throw Error("{}; {}", e.what(), checkpoint_left());
    } catch (const DeviceError& e) {
      const bool named = config().train.blocking;
      throw DeviceError("step {}, rank {} on {}: {}; {}; {}", step_, world_.rank(),
                        device_name(rank_.device()), e.what(),
                        named ? std::string("each op was waited for")
                              : format("the last op that was queued is {}, and with train.blocking=true the "
                                       "one at fault is named",
                                       last_op(rank_.device())),
                        checkpoint_left());
    }
  }

  std::string checkpoint_left() const {
    return last_saved_.empty() ? "no checkpoint was saved before" : "the last checkpoint is " + last_saved_;
  }

  static void add(PhaseSeconds& sum, const PhaseSeconds& s) {
    sum.wait += s.wait;
    sum.forward += s.forward;
    sum.backward += s.backward;
    sum.overlap += s.overlap;
    sum.reduce += s.reduce;
    sum.update += s.update;
  }

  void evaluate_now() {
    if (validation_.empty()) return;
    const auto start = std::chrono::steady_clock::now();
    const EvaluationRecord record = {.step = step_, .val_loss = evaluate(rank_.trainer(), validation_)};
    history_.evaluate_seconds += seconds_since(start);
    history_.evaluations.push_back(record);
    if (leads() && hooks_.on_evaluation) hooks_.on_evaluation(record);
  }

  void save_now(int64_t steps_done) {
    const auto start = std::chrono::steady_clock::now();
    const SavedReport saved = save_run(rank_, data_.tokenizer(), steps_done, world_);
    history_.save_seconds += seconds_since(start);
    last_saved_ = saved.path.string();
    if (!leads() || !hooks_.on_note) return;
    hooks_.on_note("saved " + saved.path.string());
    if (!saved.note.empty()) hooks_.on_note(saved.note);
  }

  TrainingHistory take_history() {
    if (trace_.is_due()) tell_trace();
    count_experts();
    count_memory();
    history_.pipeline =
        pipelines_.median(rank_.trainer().pipeline.schedule(), rank_.mesh().group(Axis::pp), clock_shift_);
    history_.wait_seconds = world_.waited() - waited_before_;
    return std::move(history_);
  }

  void count_memory() {
    const MemoryStats mine = allocator_of(rank_.device()).stats();
    const std::vector<int64_t> peaks = gather_numbers(world_, static_cast<int64_t>(mine.peak));
    const std::vector<int64_t> reserved = gather_numbers(world_, static_cast<int64_t>(mine.reserved));
    for (int rank = 0; rank < world_.size(); ++rank) {
      const auto i = static_cast<size_t>(rank);
      const Device device = device_of_rank(config().train.device, rank);
      history_.memory.push_back({device_name(device), peaks[i], reserved[i]});
    }
    history_.expected_memory = memory_account(config(), config().model.vocabulary);
  }

  void count_experts() {
    const ModelConfig& model = config().model;
    if (model.mlp != MlpKind::moe) return;
    for (int layer = 0; layer < model.blocks(); ++layer) {
      if (!model.has_experts(layer)) continue;
      std::vector<int64_t> mine(static_cast<size_t>(model.moe.experts), 0);
      if (Moe* moe = rank_.model().moe(layer)) mine = moe->statistics().expert_tokens;
      const Tensor sum = Tensor::of(Shape{static_cast<int64_t>(mine.size())}, std::span<const int64_t>(mine));
      world_.all_reduce(sum).wait();
      const auto all = sum.span<int64_t>();
      history_.expert_tokens.emplace_back(all.begin(), all.end());
    }
  }

  RankRun& rank_;
  const Dataset& data_;
  Group& world_;
  const TrainHooks& hooks_;
  TrainingHistory history_;
  int64_t clock_shift_;
  StepTrace trace_;
  PipelineHistory pipelines_;
  double waited_before_ = 0;  // seconds
  std::vector<Batch> batches_;
  std::vector<Batch> validation_;
  int64_t first_step_ = 0;
  int64_t step_ = 0;
  std::string last_saved_;    // checkpoint that this run began from or wrote; "" if none
  double machine_flops_ = 0;  // of all ranks together
  double step_flops_ = 0;
};

}  // namespace

TrainingHistory train(const TrainConfig& given, const Dataset& data, const std::string& resume, Group& world,
                      const TrainHooks& hooks) {
  const TrainConfig config = checked(given);
  check_same_run(world, config, data);
  RankRun rank(config, data.tokenizer().vocabulary(), world);
  all_or_none(world, [&] {
    if (world.rank() == 0) prepare_directory(config.train.out);
  });
  if (!config.train.init.empty() && resume.empty()) {
    all_or_none(world, [&] { load_hf_weights(rank.parameters(), rank.model().config(), config.train.init); });
    rank.parameters().narrow_kept();
    run(rank.model().data().publish_values());
    if (world.rank() == 0 && hooks.on_note) hooks.on_note("started from " + config.train.init);
  }
  Resumed from;
  if (!resume.empty()) from = resume_run(rank, data.tokenizer(), resume, world);
  if (!from.path.empty() && world.rank() == 0 && hooks.on_note) {
    hooks.on_note(
        format("resumed {}{}", from.path, from.note.empty() ? "" : ", not the latest: " + from.note));
  }
  Run run(rank, data, world, hooks);
  return run.go(from);
}

}  // namespace phalanx
