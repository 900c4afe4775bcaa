#include "phalanx/train/step.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "phalanx/ops/cross_entropy.h"

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

// Of the targets that this rank answers for: ranks of tp have the same ones.
double count_targets(const Mesh& mesh, std::span<const Batch> microbatches) {
  if (mesh.coordinate(Axis::tp) != 0) return 0;
  int64_t n = 0;
  for (const Batch& b : microbatches) {
    n += std::ranges::count_if(b.targets.span<int32_t>(), [](int32_t target) { return target != kIgnore; });
  }
  return static_cast<double>(n);
}

// Runs one step of the schedule; gives the loss sum of its forward, if it has one. `pass` lacks its batch.
double run_step(Trainer& t, const Step& step, std::span<const Batch> microbatches, Pass pass,
                PhaseSeconds& seconds) {
  const auto pass_of = [&](int m) {
    Pass p = pass;
    p.batch = &microbatches[static_cast<size_t>(m)];
    return p;
  };
  const auto tape_of = [&](int m) -> Tape& { return t.tapes[static_cast<size_t>(m)]; };
  Stopwatch watch;
  double loss = 0;
  switch (step.op) {
    case StepOp::F:
      loss = run(t.model.forward(pass_of(step.microbatch), tape_of(step.microbatch)));
      watch.lap(seconds.forward);
      break;
    case StepOp::B:
    case StepOp::I:
      tape_of(step.microbatch).set_deferring(step.op == StepOp::I);
      run(t.model.backward(pass_of(step.microbatch), tape_of(step.microbatch)));
      watch.lap(seconds.backward);
      break;
    case StepOp::W:
      tape_of(step.microbatch).run_deferred();
      watch.lap(seconds.backward);
      break;
    case StepOp::FB:
      tape_of(step.b_microbatch).set_deferring(false);
      loss = run(overlap(t.model.forward(pass_of(step.microbatch), tape_of(step.microbatch)),
                         t.model.backward(pass_of(step.b_microbatch), tape_of(step.b_microbatch))))
                 .first;
      watch.lap(seconds.overlap);
      break;
  }
  return loss;
}

struct RouterLosses {
  double balance = 0;
  double z = 0;
};

RouterLosses take_router_losses(Transformer& model) {
  RouterLosses sum;
  for (Moe* moe : model.moe_layers()) {
    sum.balance += std::exchange(moe->statistics().balance_loss_sum, 0);
    sum.z += std::exchange(moe->statistics().z_loss_sum, 0);
  }
  return sum;
}

// The first parameter whose value or gradient is not finite, for the message; empty if all are.
std::string first_bad_tensor(ParameterStore& store) {
  const auto bad = [](const Tensor& t) {
    return visit_float(t.dtype(), [&](auto e) {
      return std::ranges::any_of(t.span<decltype(e)>(), [](auto v) { return !std::isfinite(v); });
    });
  };
  for (const Parameter& p : store.all()) {
    if (bad(p.value())) return format("the weights {}", p.name());
  }
  for (const Parameter& p : store.all()) {
    if (bad(p.grad())) return format("the gradient of {}", p.name());
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
  while (t.tapes.size() < microbatches.size()) t.tapes.emplace_back();
  result.targets = run(sum_over(t.mesh.world(), std::array{count_targets(t.mesh, microbatches)}))[0];
  const double scale = result.targets > 0 ? 1 / result.targets : 0;
  watch.lap(result.seconds.reduce);

  double loss = 0;
  for (const Step& s : t.schedule) {
    loss += run_step(t, s, microbatches, {.step = step, .scale = scale, .training = true}, result.seconds);
  }

  watch = Stopwatch();
  run(t.parameters.reduce_grads());
  if (t.mesh.coordinate(Axis::tp) != 0) loss = 0;  // its ranks have the same
  const RouterLosses of_routers = take_router_losses(t.model);
  const std::array losses = run(sum_over(t.mesh.world(), std::array{loss, of_routers.balance, of_routers.z}));
  result.loss = losses[0] * scale;
  result.balance_loss = losses[1] * scale;
  result.z_loss = losses[2] * scale;
  result.grad_norm = run(t.parameters.grad_norm());
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
  if (t.model.config().moe.bias_rate > 0) run(update_biases(t.model.moe_layers()));
  run(t.parameters.gather_values());
  watch.lap(result.seconds.reduce);
  return result;
}

double evaluate(Trainer& t, std::span<const Batch> batches) {
  Tape tape;
  tape.set_keeping(false);
  double loss = 0;
  for (const Batch& batch : batches) loss += run(t.model.forward({.batch = &batch}, tape));
  if (t.mesh.coordinate(Axis::tp) != 0) loss = 0;
  const std::array sums = run(sum_over(t.mesh.world(), std::array{loss, count_targets(t.mesh, batches)}));
  return sums[1] > 0 ? sums[0] / sums[1] : 0;
}

}  // namespace phalanx
