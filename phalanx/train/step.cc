#include "phalanx/train/step.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "phalanx/ops/cast.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/elementwise.h"

namespace phalanx {
namespace {

class Stopwatch {
 public:
  /// Adds the time since the last lap (or the start) to `seconds`.
  void lap(double& seconds) {
    const auto now = std::chrono::steady_clock::now();
    seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

template <size_t N>
Task<std::array<double, N>> sum_over(Group& group, std::array<double, N> values) {
  const Tensor sum = Tensor::of(Shape{N}, std::span<const double>(values));
  Work work = group.all_reduce(sum);
  co_await work;
  std::ranges::copy(sum.span<double>(), values.begin());
  co_return values;
}

// Of the targets that this rank answers for: ranks of tp and stages have the same ones.
double count_targets(const Mesh& mesh, std::span<const Batch> microbatches) {
  if (mesh.coordinate(Axis::tp) != 0 || mesh.coordinate(Axis::pp) != 0) return 0;
  int64_t n = 0;
  for (const Batch& b : microbatches) {
    n += std::ranges::count_if(b.targets.span<int32_t>(), [](int32_t target) { return target != kIgnore; });
  }
  return static_cast<double>(n);
}

// The stages of this rank on some microbatches, or on their slices. `pass` lacks its batch; without training
// nothing is kept for backward.
class TrainStages final : public StageRunner {
 public:
  TrainStages(Trainer& t, std::span<const Batch> microbatches, const Pass& pass)
      : t_(t), microbatches_(microbatches), pass_(pass) {
    forgetful_.set_keeping(false);
    if (const Device device = t.parameters.device(); device.is_cuda()) {
      for (const Batch& batch : microbatches) there_.push_back(on_device(batch, device));
      microbatches_ = there_;
    }
    const size_t tapes = static_cast<size_t>(t.model.chunks()) * microbatches.size();
    while (pass.training && t.tapes.size() < tapes) t.tapes.emplace_back();
    while (cut() && t.histories.size() < tapes / slices()) t.histories.emplace_back();
  }

  Tensor empty_stream(int microbatch) override {
    const Batch& batch = microbatches_[static_cast<size_t>(microbatch)];
    return Tensor::empty(t_.model.stream_shape(batch), t_.parameters.compute_dtype(), t_.parameters.device());
  }
  Task<Tensor> forward(int chunk, int microbatch, Tensor x_TD) override {
    Stage& stage = t_.model.stage(chunk);
    const Pass pass = pass_of(chunk, microbatch);
    Tape& tape = tape_of(chunk, microbatch);
    Tensor y_TD = co_await stage.forward(std::move(x_TD), pass, tape);
    const bool last_slice = (static_cast<size_t>(microbatch) + 1) % slices() == 0;
    if (cut() && last_slice && !pass.training) pass.history->clear();
    if (!stage.part().predicts) co_return y_TD;
    const Tensor loss = co_await stage.loss(std::move(y_TD), pass, tape);
    accumulate(loss_, loss);
    co_return Tensor();
  }
  Task<Tensor> backward(int chunk, int microbatch, Tensor dy_TD, bool defers) override {
    Stage& stage = t_.model.stage(chunk);
    const Pass pass = pass_of(chunk, microbatch);
    Tape& tape = tape_of(chunk, microbatch);
    tape.set_deferring(defers);
    if (stage.part().predicts) dy_TD = co_await stage.loss_backward(pass, tape);
    Tensor dx_TD = co_await stage.backward(std::move(dy_TD), pass, tape);
    if (cut() && pass.batch->slice == 0) pass.history->clear();
    co_return dx_TD;
  }
  void weight_gradients(int chunk, int microbatch) override { tape_of(chunk, microbatch).run_deferred(); }

  /// Σ over microbatches, on a rank that has the last stage; 0 on others.
  double loss() const { return loss_.defined() ? number_of(loss_) : 0; }

 private:
  size_t slices() const { return static_cast<size_t>(t_.pipeline.schedule().slices); }
  bool cut() const { return slices() > 1; }
  Pass pass_of(int chunk, int microbatch) const {
    const auto number = static_cast<size_t>(microbatch);
    const size_t of_chunk = microbatches_.size() / slices();
    Pass pass = pass_;
    pass.batch = &microbatches_[number];
    if (cut()) pass.history = &t_.histories[static_cast<size_t>(chunk) * of_chunk + number / slices()];
    return pass;
  }
  Tape& tape_of(int chunk, int microbatch) {
    if (!pass_.training) return forgetful_;
    return t_.tapes[static_cast<size_t>(chunk) * microbatches_.size() + static_cast<size_t>(microbatch)];
  }

  Trainer& t_;
  std::span<const Batch> microbatches_;
  std::vector<Batch> there_;  // the same on a GPU
  Pass pass_;
  Tape forgetful_;
  Tensor loss_;  // f64 [1]
};

void add(PhaseSeconds& seconds, const std::vector<TimedStep>& steps) {
  for (const TimedStep& s : steps) {
    seconds.wait += static_cast<double>(s.begin_ns - s.called_ns) * 1e-9;
    double& phase = s.step.op == StepOp::F    ? seconds.forward
                    : s.step.op == StepOp::FB ? seconds.overlap
                                              : seconds.backward;
    phase += static_cast<double>(s.end_ns - s.begin_ns) * 1e-9;
  }
}

// So that the sum of a layer's gradients can start once the last microbatch has gone back through it.
void expect_passes(Trainer& t) {
  for (int c = 0; c < t.model.chunks(); ++c) {
    const auto passes = std::ranges::count_if(
        t.pipeline.steps(), [c](const Step& s) { return s.goes_backward() && s.backward_chunk() == c; });
    t.model.stage(c).expect_passes(static_cast<int>(passes));
  }
}

struct RouterLosses {
  double balance = 0;
  double z = 0;
};

// The layers' sum of one of their statistics, which begins anew.
double take(Transformer& model, Tensor MoeStatistics::*member) {
  Tensor sum;
  for (Moe* moe : model.moe_layers()) {
    const Tensor of_layer = std::exchange(moe->statistics().*member, Tensor());
    if (of_layer.defined()) accumulate(sum, of_layer);
  }
  return sum.defined() ? number_of(sum) : 0;
}

RouterLosses take_router_losses(Transformer& model) {
  return {take(model, &MoeStatistics::balance_loss_sum), take(model, &MoeStatistics::z_loss_sum)};
}

// The first parameter whose value or gradient is not finite, for the message; empty if all are.
std::string first_bad_tensor(ParameterStore& store) {
  const auto bad = [](const Tensor& given) {
    Tensor t = given;
    if (given.dtype() == DType::bf16) {
      t = Tensor::empty(given.shape(), DType::f32, given.device());
      widen_into(t, given);
    }
    t = t.to(kCpu);
    return visit_float(t.dtype(), [&](auto e) {
      return std::ranges::any_of(t.span<decltype(e)>(), [](auto v) { return !std::isfinite(v); });
    });
  };
  for (const Parameter& p : store.all()) {
    if (bad(store.own_value(p))) return format("the weights {}", p.name());
  }
  for (const Parameter& p : store.all()) {
    if (bad(store.own_grad(p))) return format("the gradient of {}", p.name());
  }
  return {};
}

void check_finite(Trainer& t, const StepResult& result, uint64_t step) {
  if (std::isfinite(result.loss) && std::isfinite(result.grad_norm)) return;
  const std::string bad = first_bad_tensor(t.parameters);
  const auto shown = [](double v) { return std::isnan(v) ? std::abs(v) : v; };  // NaN has no sign to tell
  throw NotFinite(format(
      "step {}: the loss is {} and the gradient norm {}; first bad tensor: {}; try a lower optimizer.lr "
      "or optimizer.clip",
      step, shown(result.loss), shown(result.grad_norm),
      bad.empty() ? std::string("none, the sum overflows") : bad));
}

}  // namespace

StepResult compute_gradients(Trainer& t, std::span<const Batch> microbatches, uint64_t step) {
  StepResult result;
  Stopwatch watch;
  t.parameters.zero_grads();
  start_step(t.model.moe_layers());
  result.targets = run(sum_over(t.mesh.world(), std::array{count_targets(t.mesh, microbatches)}))[0];
  const double scale = result.targets > 0 ? 1 / result.targets : 0;
  watch.lap(result.seconds.reduce);

  expect_passes(t);
  const Pass pass = {.step = step,
                     .scale = scale,
                     .training = true,
                     .deterministic = t.deterministic,
                     .recompute = t.recompute,
                     .loss_rows = t.loss_rows,
                     .watch = t.watch};
  TrainStages stages(t, microbatches, pass);
  t.pipeline.run(stages);
  add(result.seconds, t.pipeline.records());

  watch = Stopwatch();
  run(t.model.data().reduce_grads());
  const bool counts = t.mesh.coordinate(Axis::tp) == 0;  // its ranks have the same loss
  const double of_mtp = t.model.take_mtp_loss();
  const RouterLosses of_routers = take_router_losses(t.model);
  const std::array losses =
      run(sum_over(t.mesh.world(), std::array{counts ? stages.loss() : 0, of_routers.balance, of_routers.z,
                                              counts ? of_mtp : 0}));
  result.loss = losses[0] * scale;
  result.balance_loss = losses[1] * scale;
  result.z_loss = losses[2] * scale;
  result.mtp_loss = losses[3] * scale;
  result.grad_norm = run(t.model.data().grad_norm());
  watch.lap(result.seconds.reduce);
  return result;
}

StepResult train_step(Trainer& t, std::span<const Batch> microbatches, double lr, uint64_t step) {
  StepResult result = compute_gradients(t, microbatches, step);
  check_finite(t, result, step);
  Stopwatch watch;
  const bool clips = t.clip > 0 && result.grad_norm > t.clip;
  t.optimizer.step(lr, clips ? t.clip / (result.grad_norm + 1e-6) : 1);
  watch.lap(result.seconds.update);
  const bool biased = t.model.config().moe.bias_rate > 0;
  if (biased || t.places) {
    const Tensor tokens_LE = run(sum_step_tokens(t.model.moe_layers(), t.parameters.state_holders()));
    if (biased) update_biases(t.model.moe_layers(), tokens_LE);
    if (t.places) t.places->step(tokens_LE);
  }
  run(t.model.data().publish_values());
  watch.lap(result.seconds.reduce);
  return result;
}

double evaluate(Trainer& t, std::span<const Batch> batches) {
  const auto count = static_cast<int>(batches.size());
  if (!t.forwards || t.forwards->schedule().microbatches != count) {
    t.forwards.emplace(forward_only(t.pipeline.schedule(), count), t.mesh);
  }
  TrainStages stages(t, batches, {});
  t.forwards->run(stages);
  const double loss = t.mesh.coordinate(Axis::tp) == 0 ? stages.loss() : 0;
  const std::array sums = run(sum_over(t.mesh.world(), std::array{loss, count_targets(t.mesh, batches)}));
  return sums[1] > 0 ? sums[0] / sums[1] : 0;
}

}  // namespace phalanx
