#include "phalanx/train/verify.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>

#include "phalanx/base/philox.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/slices.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/train/pairwise.h"
#include "phalanx/train/rank_run.h"

namespace phalanx {
namespace {

constexpr int kSteps = 3;
constexpr double kLearningRate = 1e-2;
constexpr std::chrono::seconds kPatience(60);  // without a step forward: a case that hangs is a failure

using FullTensors = std::map<std::string, std::vector<double>>;

struct Outcome {
  StepResult first;
  FullTensors grads;
  FullTensors weights;  // after kSteps steps
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
  const auto vocabulary = static_cast<uint32_t>(o.model.vocabulary);
  std::vector<Batch> batches;
  for (int64_t m = 0; m < o.microbatches; ++m) {
    Batch b = {Tensor::empty({rows}, DType::i32), Tensor::empty({rows}, DType::i32),
               Tensor::empty({rows}, DType::i32), Tensor::empty({local + 1}, DType::i64),
               Tensor::empty({rows}, DType::i64)};
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = m * o.sequences * context + first + i;
      const auto key = static_cast<uint64_t>(row) * 3;
      b.tokens.data<int32_t>()[i] = static_cast<int32_t>(stream.bits(key) % vocabulary);
      b.targets.data<int32_t>()[i] =
          stream.bits(key + 1) % 8 == 0 ? kIgnore : static_cast<int32_t>(stream.bits(key + 2) % vocabulary);
      b.positions.data<int32_t>()[i] = static_cast<int32_t>(i % context);
      b.rows.data<int64_t>()[i] = row;
    }
    for (int64_t s = 0; s <= local; ++s) b.sequence_offsets.data<int64_t>()[s] = s * context;
    add_slices(batches, b, context, slices, share);
  }
  return batches;
}

// Writes what this rank updates of each parameter into the full tensors, and the states beside the values.
void collect(FullTensors& full, ParameterStore& store, bool grads) {
  for (const Parameter& p : store.all()) {
    std::vector<double>& out = full[p.name()];
    out.resize(static_cast<size_t>(p.slice().full.numel()));
    const Tensor own = grads ? store.own_grad(p) : store.own_value(p);
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
    visit_float(s.value.dtype(), [&](auto t) {
      const auto values = s.value.span<decltype(t)>();
      full[s.name].assign(values.begin(), values.end());
    });
  }
}

Schedule schedule_of(const VerifyCase& c, int microbatches) {
  return make_schedule(c.schedule, {.ranks = c.layout.pp, .microbatches = microbatches, .slices = c.slices});
}

Outcome run_case(const VerifyOptions& o, const VerifyCase& c) {
  Outcome out;
  std::mutex mutex;
  run_thread_ranks({.ranks = c.layout.ranks(), .deadlines = {.progress = kPatience}}, [&](Group& world) {
    Mesh mesh(world, c.layout);
    ParameterStore store(mesh, o.dtype, {.stage = c.zero, .shard = c.shard});
    const Schedule schedule = schedule_of(c, o.microbatches);
    Transformer model(store, o.model, o.seed, c.sequence, c.ulysses,
                      parts_of_rank(schedule, mesh.coordinate(Axis::pp), o.model.layers));
    store.initialise(o.seed);
    Optimizer optimizer(
        store, {.kind = o.dtype == DType::f64 ? OptimizerConfig::Kind::adamw : OptimizerConfig::Kind::sgd});
    Trainer trainer{mesh, store, model, optimizer, Pipeline(schedule, mesh), 1.0, {.what = c.recompute}};
    const std::vector<Batch> batches = random_batches(o, mesh, c.slices, model.context_share());
    const StepResult first = compute_gradients(trainer, batches, 0);
    {
      const std::lock_guard lock(mutex);
      out.first = first;
      collect(out.grads, store, true);
    }
    for (uint64_t step = 0; step < kSteps; ++step) train_step(trainer, batches, kLearningRate, step);
    const std::lock_guard lock(mutex);
    collect(out.weights, store, false);
  });
  return out;
}

double squares(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return sum;
}

struct Worst {
  double error = 0;
  std::string tensor;
};

Worst worst_error(const FullTensors& tensors, const FullTensors& reference) {
  double all = 0;
  for (const auto& [name, v] : reference) all += squares(v);
  Worst worst;
  for (const auto& [name, v0] : reference) {
    const std::vector<double>& v = tensors.at(name);
    double difference = 0;
    for (size_t i = 0; i < v0.size(); ++i) difference += (v[i] - v0[i]) * (v[i] - v0[i]);
    const double size = std::max(std::sqrt(squares(v0)), 1e-6 * std::sqrt(all));
    double error = std::sqrt(difference) / size;
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    if (worst.tensor.empty() || error > worst.error) worst = {error, name};
  }
  return worst;
}

// Those of a training step that the pipeline can run, with the fewest microbatches that DualPipe takes.
std::vector<std::string> schedules_of(const ModelConfig& model, int pp) {
  std::vector<std::string> names;
  for (const ScheduleEntry* entry : schedule_entries()) {
    const std::string name(entry->name);
    if (pp == 1 && name != "sequential" && name != "overlapped") continue;
    if (pp > 1 && (name == "overlapped" || (name == "dualpipe" && pp % 2 != 0))) continue;
    const Schedule s = make_schedule(name, {.ranks = pp, .microbatches = 2 * pp});
    if (s.stages() <= model.layers) names.push_back(name);
  }
  return names;
}

void add_each_zero(VerifyCase c, std::vector<VerifyCase>& cases) {
  for (c.zero = Zero::none; c.zero <= Zero::weights;
       c.zero = static_cast<Zero>(static_cast<int>(c.zero) + 1)) {
    cases.push_back(c);
    if (c.zero == Zero::none || c.layout.dp * c.layout.cp % 4 != 0) continue;
    cases.push_back(c);
    cases.back().shard = 2;  // two copies of what is shared out, or more
  }
}

// What is to meet in pairs: the axes that cut something, and how.
Settings settings_of(const VerifyCase& c) {
  Settings s = {c.layout.text(),
                {"schedule " + c.schedule, format("recompute {}", recompute_name(c.recompute)),
                 format("zero {} shard {}", static_cast<int>(c.zero), c.shard)}};
  const Layout& l = c.layout;
  if (l.cp > 1) s.values.push_back(format("ulysses {} of {}", c.ulysses, l.cp));
  if (l.tp > 1) s.values.push_back(c.sequence ? "sequence" : "alike");
  s.values.push_back(format("slices {}", c.slices));
  const std::pair<const char*, int> axes[] = {{"pp", l.pp}, {"dp", l.dp}, {"cp", l.cp},
                                              {"tp", l.tp}, {"ep", l.ep}, {"etp", l.etp}};
  for (const auto& [name, size] : axes) {
    if (size > 1) s.values.push_back(format("{}={}", name, size));
  }
  return s;
}

double relative(double a, double b) { return std::abs(a - b) / std::max(std::abs(b), 1e-300); }

}  // namespace

std::vector<Layout> verify_layouts(const ModelConfig& model, int ranks) {
  std::vector<Layout> layouts;
  const auto add_experts = [&](Layout layout) {
    const int stage_ranks = layout.dp * layout.cp * layout.tp;
    for (layout.ep = 1; layout.ep <= stage_ranks; ++layout.ep) {
      for (layout.etp = 1; layout.etp <= stage_ranks / layout.ep; ++layout.etp) {
        const bool divides = stage_ranks % (layout.ep * layout.etp) == 0;
        if (divides && misfit(model, layout).empty()) layouts.push_back(layout);
      }
    }
  };
  for (int pp = 1; pp <= std::min(ranks, model.layers); ++pp) {
    for (int tp = 1; tp <= ranks / pp; ++tp) {
      for (int cp = 1; cp <= ranks / (pp * tp); ++cp) {
        const int rest = ranks / (pp * tp * cp);
        if (rest * pp * tp * cp == ranks) add_experts({.pp = pp, .dp = rest, .cp = cp, .tp = tp});
      }
    }
  }
  return layouts;
}

std::vector<VerifyCase> verify_cases(const ModelConfig& model, const std::vector<Layout>& layouts,
                                     Coverage coverage) {
  std::vector<VerifyCase> all;
  for (const Layout& layout : layouts) {
    for (const std::string& schedule : schedules_of(model, layout.pp)) {
      for (const int ulysses : ulysses_choices(model, layout)) {
        for (const bool sequence : {false, true}) {
          if (sequence && layout.tp == 1) continue;
          for (const Recompute recompute :
               {Recompute::none, Recompute::attention, Recompute::mlp, Recompute::full}) {
            for (const int slices : {1, 2}) {
              if (model.context % slices != 0) continue;
              add_each_zero({layout, schedule, sequence, Zero::none, 0, ulysses, recompute, slices}, all);
            }
          }
        }
      }
    }
  }
  if (coverage == Coverage::exhaustive) return all;
  std::vector<Settings> settings;
  for (const VerifyCase& c : all) settings.push_back(settings_of(c));
  std::vector<VerifyCase> few;
  for (const size_t i : cover_pairs(settings)) few.push_back(all[i]);
  return few;
}

std::vector<VerifyRow> verify(const VerifyOptions& given, const std::vector<VerifyCase>& cases,
                              const std::function<void(const VerifyRow&)>& on_row) {
  VerifyOptions o = given;
  for (const VerifyCase& c : cases) {
    if (given.sequences == 0) {
      o.sequences = std::lcm(std::max<int64_t>(o.sequences, 1), c.layout.ranks() / c.layout.pp);
    }
    o.microbatches = std::max(o.microbatches, 2 * c.layout.pp);
  }
  const double limit = o.tolerance > 0 ? o.tolerance : o.dtype == DType::f64 ? 1e-12 : 1e-5;
  const Outcome reference = run_case(o, {});
  std::vector<VerifyRow> rows;
  for (const VerifyCase& c : cases) {
    VerifyRow row{.run = c};
    const auto start = std::chrono::steady_clock::now();
    try {
      const Outcome outcome = run_case(o, c);
      const Worst worst = worst_error(outcome.grads, reference.grads);
      row.max_rel_grad_err = worst.error;
      row.worst_tensor = worst.tensor;
      row.loss_err = relative(outcome.first.loss, reference.first.loss);
      row.grad_norm_err = relative(outcome.first.grad_norm, reference.first.grad_norm);
      row.weights_err = worst_error(outcome.weights, reference.weights).error;
      // AdamW divides by √v: it magnifies the rounding of gradients that nearly vanish.
      row.pass = worst.error <= limit && row.loss_err <= limit && row.grad_norm_err <= limit &&
                 row.weights_err <= 1e4 * limit;
    } catch (const std::exception& e) {
      row.error = e.what();
    }
    row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    on_row(row);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace phalanx
