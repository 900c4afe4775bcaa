#include "phalanx/train/verify.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>

#include "phalanx/base/philox.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/train/rank_run.h"

namespace phalanx {
namespace {

constexpr int kSteps = 3;
constexpr double kLearningRate = 1e-2;

using FullTensors = std::map<std::string, std::vector<double>>;

struct Outcome {
  StepResult first;
  FullTensors grads;
  FullTensors weights;  // after kSteps steps
};

// Random tokens for the whole job; a rank holds the sequences of its dp coordinate. One target in eight is
// ignored.
std::vector<Batch> random_batches(const VerifyOptions& o, const Mesh& mesh) {
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
    batches.push_back(own_tokens(std::move(b), mesh.coordinate(Axis::cp), mesh.size(Axis::cp)));
  }
  return batches;
}

// Writes this rank's part of each parameter into the full tensors: of gradients its share, of values all, and
// the states.
void collect(FullTensors& full, ParameterStore& store, bool grads) {
  for (const Parameter& p : store.all()) {
    std::vector<double>& out = full[p.name()];
    out.resize(static_cast<size_t>(p.slice().full.numel()));
    const Tensor local = grads ? p.grad() : p.value();
    const FlatRange range = grads ? store.share_of(p) : FlatRange{0, local.numel()};
    visit_float(local.dtype(), [&](auto t) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        out[static_cast<size_t>(p.slice().global_index(i))] =
            static_cast<double>(local.data<decltype(t)>()[i]);
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

Outcome run_case(const VerifyOptions& o, const VerifyCase& c) {
  check_trainable(c.layout);  // an axis that no layer cuts would agree and prove nothing
  Outcome out;
  std::mutex mutex;
  run_thread_ranks({.ranks = c.layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, c.layout);
    ParameterStore store(mesh, o.dtype, c.zero);
    Transformer model(store, o.model, o.seed, c.sequence);
    store.initialise(o.seed);
    Optimizer optimizer(
        store, {.kind = o.dtype == DType::f64 ? OptimizerConfig::Kind::adamw : OptimizerConfig::Kind::sgd});
    Trainer trainer{
        mesh, store, model, optimizer, c.overlapped ? overlapped(o.microbatches) : sequential(o.microbatches),
        1.0};
    const std::vector<Batch> batches = random_batches(o, mesh);
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

double relative(double a, double b) { return std::abs(a - b) / std::max(std::abs(b), 1e-300); }

}  // namespace

void add_cases(const Layout& layout, std::vector<VerifyCase>& cases) {
  for (const bool sequence : {false, true}) {
    if (sequence && layout.tp == 1) continue;
    for (const bool overlaps : {false, true}) {
      for (const Zero zero : {Zero::none, Zero::optimizer}) {
        cases.push_back({layout, overlaps, sequence, zero});
      }
    }
  }
}

std::vector<VerifyCase> verify_cases(const ModelConfig& model, int ranks) {
  std::vector<VerifyCase> cases;
  const auto divides = [&](int size) { return ranks % size == 0; };
  for (int tp = 1; tp <= ranks; ++tp) {
    for (int cp = 1; cp <= ranks / tp; ++cp) {
      for (int ep = 1; ep <= ranks; ++ep) {
        for (int etp = 1; etp <= ranks / ep; ++etp) {
          if (!divides(tp * cp) || !divides(ep * etp)) continue;
          const Layout layout{.dp = ranks / (tp * cp), .cp = cp, .tp = tp, .ep = ep, .etp = etp};
          if (misfit(model, layout).empty()) add_cases(layout, cases);
        }
      }
    }
  }
  return cases;
}

std::vector<VerifyRow> verify(const VerifyOptions& given, const std::vector<VerifyCase>& cases,
                              const std::function<void(const VerifyRow&)>& on_row) {
  VerifyOptions o = given;
  for (const VerifyCase& c : cases) {
    if (given.sequences == 0) o.sequences = std::lcm(std::max<int64_t>(o.sequences, 1), c.layout.ranks());
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
