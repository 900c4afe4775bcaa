#include "phalanx/train/verify.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <tuple>

#include "phalanx/base/philox.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/slices.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/train/choice_replay.h"
#include "phalanx/train/rank_run.h"

namespace phalanx {
namespace {

constexpr int kSteps = 3;
// Scores nearer than that may choose otherwise by rounding alone: in f32, in bf16.
constexpr double kCloseChoice = 1e-5;
constexpr double kCloseChoiceOfBf16 = 2e-2;
constexpr double kLearningRate = 1e-2;
constexpr std::chrono::seconds kPatience(60);  // without a step forward: a case that hangs is a failure

using FullTensors = std::map<std::string, std::vector<double>>;

struct Outcome {
  StepResult first;
  FullTensors grads;
  FullTensors weights;                  // after kSteps steps
  std::vector<std::string> parameters;  // of one rank, from the tokens to the loss
};

// Random tokens for the whole job; a rank holds the sequences of its dp coordinate. One target in eight is
// ignored.
std::vector<Batch> random_batches(const VerifyOptions& o, const Mesh& mesh, int slices,
                                  const ContextShare& share) {
  const int64_t context = o.model.context;
  const int64_t local = o.sequences / mesh.size(Axis::dp);
  const int64_t rows = local * context;
  const int64_t first = rows * mesh.coordinate(Axis::dp);
  const RandomStream stream(o.seed, "verify.tokens");
  const RandomStream documents(o.seed, "verify.documents");
  const auto vocabulary = static_cast<uint32_t>(o.model.vocabulary);
  std::vector<Batch> batches;
  for (int64_t m = 0; m < o.microbatches; ++m) {
    Batch b = {.tokens = Tensor::empty({rows}, DType::i32),
               .targets = Tensor::empty({rows}, DType::i32),
               .rows = Tensor::empty({rows}, DType::i64)};
    std::vector<int64_t> starts;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = m * o.sequences * context + first + i;
      const auto key = static_cast<uint64_t>(row) * 3;
      b.tokens.data<int32_t>()[i] = static_cast<int32_t>(stream.bits(key) % vocabulary);
      b.targets.data<int32_t>()[i] =
          stream.bits(key + 1) % 8 == 0 ? kIgnore : static_cast<int32_t>(stream.bits(key + 2) % vocabulary);
      b.rows.data<int64_t>()[i] = row;
      const bool document = o.documents && documents.bits(static_cast<uint64_t>(row)) % 8 == 0;
      if (i % context == 0 || document) starts.push_back(i);
    }
    set_sequences(b, starts);
    add_slices(batches, with_ahead(b, o.model.mtp), context, slices, share);
  }
  return batches;
}

// Writes what this rank updates of each parameter into the full tensors, and the states beside the values.
void collect(FullTensors& full, ParameterStore& store, bool grads) {
  for (const Parameter& p : store.all()) {
    std::vector<double>& out = full[p.name()];
    out.resize(static_cast<size_t>(p.slice().full.numel()));
    const Tensor own = (grads ? store.own_grad(p) : store.own_value(p)).to(kCpu);
    const int64_t first = store.share_of(p).begin;
    visit_float(own.dtype(), [&](auto t) {
      for (int64_t i = 0; i < own.numel(); ++i) {
        out[static_cast<size_t>(p.slice().global_index(first + i))] =
            static_cast<double>(own.data<decltype(t)>()[i]);
      }
    });
  }
  for (const State& s : store.states()) {
    if (grads) return;
    const Tensor value = s.value.to(kCpu);
    visit_float(value.dtype(), [&](auto t) {
      const auto values = value.span<decltype(t)>();
      full[s.name].assign(values.begin(), values.end());
    });
  }
}

Schedule schedule_of(const VerifyCase& c, int microbatches) {
  return make_schedule(c.schedule, {.ranks = c.layout.pp, .microbatches = microbatches, .slices = c.slices});
}

// Softmax does not see what a bias of keys adds to all scores of a row, where nothing turns keys: its
// gradient is 0 but for rounding, which AdamW makes steps of.
bool is_rounding(const ModelConfig& model, const std::string& name) {
  return model.positions == Positions::learned && name.ends_with(".attention.k.b");
}

Outcome run_case(const VerifyOptions& o, const VerifyCase& c, RoutingWatch& watch) {
  Outcome out;
  std::mutex mutex;
  run_thread_ranks({.ranks = c.layout.ranks(), .deadlines = {.progress = kPatience}}, [&](Group& world) {
    const Device device = device_of_rank(o.device, world.rank());
    const DeviceScope scope(device);
    Mesh mesh(world, c.layout);
    ParameterStore store(mesh, o.dtype, {.stage = c.zero, .shard = c.shard},
                         {.narrow = o.narrow, .products = o.products, .device = device});
    const Schedule schedule = schedule_of(c, o.microbatches);
    Transformer model(store, o.model, o.seed, {.sequence = c.sequence, .overlap = c.tp_overlap}, c.ulysses,
                      parts_of_rank(schedule, mesh.coordinate(Axis::pp), o.model.layers));
    store.initialise(o.seed);
    Optimizer optimizer(
        store, {.kind = o.dtype == DType::f64 ? OptimizerConfig::Kind::adamw : OptimizerConfig::Kind::sgd});
    Trainer trainer{.mesh = mesh,
                    .parameters = store,
                    .model = model,
                    .optimizer = optimizer,
                    .pipeline = Pipeline(schedule, mesh),
                    .clip = 1.0,
                    .recompute = {.what = c.recompute},
                    .watch = &watch};
    const std::vector<Batch> batches = random_batches(o, mesh, c.slices, model.context_share());
    const StepResult first = compute_gradients(trainer, batches, 0);
    {
      const std::lock_guard lock(mutex);
      out.first = first;
      if (c.layout.ranks() == 1) {
        for (const Parameter* p : store.added()) out.parameters.push_back(p->name());
      }
      collect(out.grads, store, true);
    }
    for (uint64_t step = 0; step < kSteps; ++step) train_step(trainer, batches, kLearningRate, step);
    const std::lock_guard lock(mutex);
    collect(out.weights, store, false);
  });
  std::erase_if(out.weights, [&](const auto& w) { return is_rounding(o.model, w.first); });
  return out;
}

double norm(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

double norm(const FullTensors& tensors) {
  double sum = 0;
  for (const auto& [name, v] : tensors) sum += norm(v) * norm(v);
  return std::sqrt(sum);
}

// By name.
std::map<std::string, double> errors_of(const ModelConfig& model, const FullTensors& tensors,
                                        const FullTensors& reference) {
  const double all = norm(reference);
  std::map<std::string, double> errors;
  for (const auto& [name, v0] : reference) {
    std::vector<double> difference = tensors.at(name);
    for (size_t i = 0; i < v0.size(); ++i) difference[i] -= v0[i];
    const double floor = is_rounding(model, name) ? all : 1e-6 * all;
    const double error = norm(difference) / std::max(norm(v0), floor);
    errors[name] = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }
  return errors;
}

auto worst_of(const std::map<std::string, double>& errors) {
  return std::ranges::max_element(errors, {}, [](const auto& e) { return e.second; });
}

double relative(double a, double b) { return std::abs(a - b) / std::max(std::abs(b), 1e-300); }

void compare(VerifyRow& row, const ModelConfig& model, const Outcome& outcome, const Outcome& reference,
             double limit) {
  const std::map<std::string, double> errors = errors_of(model, outcome.grads, reference.grads);
  std::tie(row.worst_tensor, row.max_rel_grad_err) = *worst_of(errors);
  const auto& names = reference.parameters;
  const auto first =
      std::find_if(names.rbegin(), names.rend(), [&](auto& n) { return errors.at(n) > limit; });
  if (first != names.rend()) row.first_tensor = *first;
  row.loss_err = relative(outcome.first.loss, reference.first.loss);
  row.grad_norm_err = relative(outcome.first.grad_norm, reference.first.grad_norm);
  row.weights_err = worst_of(errors_of(model, outcome.weights, reference.weights))->second;
  // AdamW divides by √v: it magnifies the rounding of gradients that nearly vanish.
  row.pass = row.max_rel_grad_err <= limit && row.loss_err <= limit && row.grad_norm_err <= limit &&
             row.weights_err <= 1e4 * limit;
}

}  // namespace

std::vector<VerifyRow> verify(const VerifyOptions& given, const std::vector<VerifyCase>& cases,
                              const std::function<void(const VerifyRow&)>& on_row) {
  VerifyOptions o = given;
  for (const VerifyCase& c : cases) {
    if (given.sequences == 0) {
      o.sequences = std::lcm(std::max<int64_t>(o.sequences, 1), c.layout.ranks() / c.layout.pp);
    }
    o.microbatches = std::max(o.microbatches, 2 * c.layout.pp);
  }
  const bool bf16 = o.narrow && o.device != Device::Kind::cpu;
  const bool fp8 = o.products == Products::fp8;
  const double of_bf16 = fp8 ? 8e-2 : 2e-2;
  const double of_others = fp8 ? 5e-2 : o.dtype == DType::f64 ? 1e-12 : 1e-5;
  const double usual = bf16 ? of_bf16 : of_others;
  const double limit = o.tolerance > 0 ? o.tolerance : usual;
  CloseChoices close(bf16 ? kCloseChoiceOfBf16 : o.dtype == DType::f64 ? 0 : kCloseChoice);
  RecordChoices record(close);
  VerifyOptions of_one = o;
  of_one.device = o.reference.value_or(o.device);
  const Outcome reference = run_case(of_one, {}, record);
  std::vector<VerifyRow> rows;
  for (const VerifyCase& c : cases) {
    VerifyRow row{.run = c};
    ReplayChoices replay(close);
    const auto start = std::chrono::steady_clock::now();
    try {
      compare(row, o.model, run_case(o, c, replay), reference, limit);
    } catch (const std::exception& e) {
      row.error = e.what();
    }
    row.replayed = replay.tokens();
    row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    on_row(row);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace phalanx
