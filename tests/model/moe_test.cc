// A mixture of experts against its definition, written with plain loops: output, statistics, and every
// gradient by finite differences of that definition; on one rank and over several.
#include "phalanx/model/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <random>

#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

// T tokens, D width, E experts, K top-k, F expert width

constexpr int64_t kWidth = 5;
constexpr int64_t kSequences = 4;
constexpr int64_t kLength = 3;
constexpr int64_t kTokens = kSequences * kLength;
constexpr double kScale = 0.7;  // of the loss

struct Case {
  const char* name;
  MoeConfig moe;
  Layout layout;
  bool sequence = false;  // sequence parallelism
};

using Vector = std::vector<double>;
/// "x" and the parameters, by name; full tensors.
using Values = std::map<std::string, Vector>;

struct Result {
  Vector y;
  double balance_loss = 0;
  std::vector<int64_t> expert_tokens;
  std::vector<std::vector<size_t>> chosen;  // of each token
};

// down(silu(gate(x)) · up(x)), added to y times `weight`. gate_up [2F, D], down [D, F].
void add_swiglu(const double* x, const double* gate_up, const double* down, int64_t f, double weight,
                double* y) {
  const auto product = [](const double* row, const double* v, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += row[i] * v[i];
    return sum;
  };
  Vector a(static_cast<size_t>(f));
  for (int64_t i = 0; i < f; ++i) {
    const double gate = product(gate_up + i * kWidth, x, kWidth);
    a[static_cast<size_t>(i)] = gate / (1 + std::exp(-gate)) * product(gate_up + (f + i) * kWidth, x, kWidth);
  }
  for (int64_t d = 0; d < kWidth; ++d) y[d] += weight * product(down + d * f, a.data(), f);
}

Vector scores_of(const double* x, const Vector& router, const MoeConfig& c) {
  Vector scores(static_cast<size_t>(c.experts));
  double sum = 0;
  for (size_t e = 0; e < scores.size(); ++e) {
    double logit = 0;
    for (size_t d = 0; d < kWidth; ++d) logit += router[e * kWidth + d] * x[d];
    scores[e] = c.scores == Scores::sigmoid ? 1 / (1 + std::exp(-logit)) : std::exp(logit);
    sum += scores[e];
  }
  if (c.scores == Scores::softmax) {
    for (double& s : scores) s /= sum;
  }
  return scores;
}

// DeepSeek-V3, section 2.1.2, times the number of tokens.
double sequence_balance_loss(const std::vector<Vector>& scores,
                             const std::vector<std::vector<size_t>>& chosen, const MoeConfig& c) {
  const auto n = static_cast<double>(scores.size());
  double loss = 0;
  for (size_t e = 0; e < static_cast<size_t>(c.experts); ++e) {
    double f = 0;
    double p = 0;
    for (size_t t = 0; t < scores.size(); ++t) {
      f += static_cast<double>(std::ranges::count(chosen[t], e)) * c.experts / (c.top_k * n);
      double sum = 0;
      for (const double s : scores[t]) sum += s;
      p += scores[t][e] / sum / n;
    }
    loss += f * p;
  }
  return n * loss;
}

Result definition(const Values& v, const MoeConfig& c) {
  Result out{.y = Vector(kTokens * kWidth),
             .expert_tokens = std::vector<int64_t>(static_cast<size_t>(c.experts))};
  const int64_t f = c.expert_width;
  for (int64_t s = 0; s < kSequences; ++s) {
    std::vector<Vector> scores;
    std::vector<int> taken(static_cast<size_t>(c.experts));
    const double even = static_cast<double>(kLength * c.top_k) / c.experts;
    const int room = c.capacity > 0 ? static_cast<int>(std::ceil(c.capacity * even)) : kTokens;
    for (int64_t t = s * kLength; t < (s + 1) * kLength; ++t) {
      const double* x = v.at("x").data() + t * kWidth;
      double* y = out.y.data() + t * kWidth;
      scores.push_back(scores_of(x, v.at("m.router.w"), c));
      std::vector<size_t> best(static_cast<size_t>(c.experts));
      for (size_t e = 0; e < best.size(); ++e) best[e] = e;
      std::ranges::stable_sort(best, std::greater<>(), [&](size_t e) { return scores.back()[e]; });
      best.resize(static_cast<size_t>(c.top_k));
      double sum = 0;
      for (const size_t e : best) sum += scores.back()[e];
      for (const size_t e : best) {
        const double weight = scores.back()[e] / (c.normalise ? sum : 1) * c.scaling;
        const auto at = static_cast<int64_t>(e);
        if (taken[e]++ < room) {
          add_swiglu(x, v.at("m.experts.gate_up").data() + at * 2 * f * kWidth,
                     v.at("m.experts.down").data() + at * kWidth * f, f, weight, y);
        }
        ++out.expert_tokens[e];
      }
      if (c.shared_experts > 0) {
        add_swiglu(x, v.at("m.shared.gate_up.w").data(), v.at("m.shared.down.w").data(), c.shared_experts * f,
                   1, y);
      }
      out.chosen.push_back(best);
    }
    const std::vector<std::vector<size_t>> chosen(out.chosen.end() - kLength, out.chosen.end());
    out.balance_loss += sequence_balance_loss(scores, chosen, c);
  }
  return out;
}

double objective(const Values& v, const Vector& dy, const MoeConfig& c) {
  const Result r = definition(v, c);
  double sum = c.balance_loss * kScale * r.balance_loss;
  for (size_t i = 0; i < dy.size(); ++i) sum += dy[i] * r.y[i];
  return sum;
}

// By central differences of fourth order; nothing where a token changes its experts.
std::optional<double> slope(Values& v, double& at, const Vector& dy, const MoeConfig& c) {
  constexpr double kStep = 1e-3;
  const double before = at;
  const auto chosen = definition(v, c).chosen;
  double sum = 0;
  bool same = true;
  for (const auto& [steps, factor] : {std::pair{1, 8.0}, {-1, -8.0}, {2, -1.0}, {-2, 1.0}}) {
    at = before + steps * kStep;
    sum += factor * objective(v, dy, c);
    same = same && definition(v, c).chosen == chosen;
  }
  at = before;
  return same ? std::optional(sum / (12 * kStep)) : std::nullopt;
}

class MoeTest : public ::testing::TestWithParam<Case> {
 protected:
  const MoeConfig& moe() const { return GetParam().moe; }

  Vector random_vector(size_t n) {
    Vector v(n);
    std::normal_distribution<double> normal(0, 0.8);
    for (double& e : v) e = normal(random_);
    return v;
  }

  Values random_values() {
    const auto experts = static_cast<size_t>(moe().experts);
    const auto matrix = static_cast<size_t>(moe().expert_width * kWidth);
    const auto shared = static_cast<size_t>(moe().shared_experts);
    Values v = {{"x", random_vector(kTokens * kWidth)},
                {"m.router.w", random_vector(experts * kWidth)},
                {"m.experts.gate_up", random_vector(experts * 2 * matrix)},
                {"m.experts.down", random_vector(experts * matrix)}};
    if (shared > 0) {
      v["m.shared.gate_up.w"] = random_vector(2 * shared * matrix);
      v["m.shared.down.w"] = random_vector(shared * matrix);
    }
    return v;
  }

  const unsigned seed_ = std::random_device{}();
  std::mt19937 random_{seed_};
};

// What the ranks of a layout make of it: y, statistics, and the gradients of "x" and the parameters.
struct Outcome {
  Result result{.y = Vector(kTokens * kWidth)};
  Values gradients;
};

Outcome computed(const Case& c, const Values& v, const Vector& dy) {
  ModelConfig config = {.vocabulary = 2, .width = kWidth, .heads = 1, .mlp = MlpKind::moe, .moe = c.moe};
  config.positions = Positions::learned;  // an odd head dimension
  Outcome out;
  out.result.expert_tokens.resize(static_cast<size_t>(c.moe.experts));
  out.gradients["x"].resize(kTokens * kWidth);
  for (const auto& [name, values] : v) out.gradients[name].resize(values.size());
  std::mutex mutex;
  run_thread_ranks({.ranks = c.layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, c.layout);
    ParameterStore store(mesh, DType::f64);
    TensorParallel tensor(mesh, {.sequence = c.sequence});
    const ModelConfig model = resolved(config);
    ContextParallel context(mesh, 1);
    DataParallel data(store);
    Moe moe({store, data, tensor, context, model}, "m", "m.experts", 0);
    store.initialise(1);
    for (const Parameter& p : store.all()) {
      const auto local = p.value().span<double>();
      for (size_t i = 0; i < local.size(); ++i) {
        local[i] = v.at(p.name())[static_cast<size_t>(p.slice().global_index(static_cast<int64_t>(i)))];
      }
    }
    const int64_t sequences = kSequences / mesh.size(Axis::dp);
    const int64_t rows = sequences * kLength;
    const int64_t first = rows * mesh.coordinate(Axis::dp);
    const auto mine = [&](const Vector& all) {
      const auto part =
          std::span(all).subspan(static_cast<size_t>(first * kWidth), static_cast<size_t>(rows * kWidth));
      return Tensor::of(Shape{rows, kWidth}, part);
    };
    Batch batch = {.sequence_offsets = Tensor::empty({sequences + 1}, DType::i64),
                   .rows = Tensor::empty({rows}, DType::i64)};
    std::iota(batch.rows.data<int64_t>(), batch.rows.data<int64_t>() + rows, first);
    for (int64_t s = 0; s <= sequences; ++s) batch.sequence_offsets.data<int64_t>()[s] = s * kLength;
    const Pass pass = {.batch = &batch, .scale = kScale, .training = true};
    Tape tape;
    const Tensor y = run(moe.forward(tensor.stream_rows(mine(v.at("x"))), {}, pass, tape));
    const Tensor dx = run(moe.backward(tensor.stream_rows(mine(dy)), pass, tape));
    EXPECT_TRUE(tape.empty());
    run(DataParallel(store).reduce_grads());

    const std::lock_guard lock(mutex);
    const int64_t at = (first + (tensor.sequence() ? tensor.rank() * y.rows() : 0)) * kWidth;
    std::ranges::copy(y.span<double>(), out.result.y.begin() + at);
    std::ranges::copy(dx.span<double>(), out.gradients["x"].begin() + at);
    out.result.balance_loss += moe.statistics().balance_loss_sum.span<double>()[0];
    for (size_t e = 0; e < out.result.expert_tokens.size(); ++e) {
      out.result.expert_tokens[e] += moe.statistics().expert_tokens[e];
    }
    for (const Parameter& p : store.all()) {
      const auto local = p.grad().span<double>();
      for (size_t i = 0; i < local.size(); ++i) {
        const auto at = static_cast<size_t>(p.slice().global_index(static_cast<int64_t>(i)));
        out.gradients[p.name()][at] = local[i];
      }
    }
  });
  return out;
}

TEST_P(MoeTest, IsItsDefinition) {
  SCOPED_TRACE(seed_);
  Values values = random_values();
  const Vector dy = random_vector(kTokens * kWidth);
  const Result expected = definition(values, moe());
  const Outcome got = computed(GetParam(), values, dy);
  for (size_t i = 0; i < expected.y.size(); ++i)
    EXPECT_NEAR(got.result.y[i], expected.y[i], 1e-12) << "y " << i;
  EXPECT_NEAR(got.result.balance_loss, expected.balance_loss, 1e-12);
  EXPECT_EQ(got.result.expert_tokens, expected.expert_tokens);
  int compared = 0;
  int rerouted = 0;
  for (auto& [name, v] : values) {
    for (size_t i = 0; i < v.size(); ++i) {
      const std::optional<double> derivative = slope(values, v[i], dy, moe());
      ++compared;
      rerouted += derivative ? 0 : 1;
      if (derivative) {
        EXPECT_NEAR(got.gradients.at(name)[i], *derivative, 1e-6) << name << " " << i;
      }
    }
  }
  EXPECT_LT(rerouted, compared / 3);
}

constexpr MoeConfig kSoftmax = {.experts = 4, .top_k = 2, .expert_width = 3, .balance_loss = 0.3};

MoeConfig with(MoeConfig c, auto change) {
  change(c);
  return c;
}

INSTANTIATE_TEST_SUITE_P(
    Models, MoeTest,
    ::testing::Values(
        Case{"softmax", kSoftmax, {}}, Case{"softmax_ep2", kSoftmax, {.dp = 2, .ep = 2}},
        Case{"softmax_dp4_ep2", kSoftmax, {.dp = 4, .ep = 2}},
        Case{"softmax_ep4", kSoftmax, {.dp = 4, .ep = 4}},
        Case{"sigmoid", with(kSoftmax, [](MoeConfig& c) { c.scores = Scores::sigmoid; }), {}},
        Case{"sigmoid_scaled_shared_ep2",
             with(kSoftmax,
                  [](MoeConfig& c) {
                    c.scores = Scores::sigmoid;
                    c.scaling = 2.5;
                    c.shared_experts = 2;
                  }),
             {.dp = 2, .ep = 2}},
        Case{"not_normalised", with(kSoftmax, [](MoeConfig& c) { c.normalise = false; }), {}},
        Case{"one_of_one", with(kSoftmax, [](MoeConfig& c) { c.experts = c.top_k = 1; }), {}},
        Case{"all_chosen_shared",
             with(kSoftmax,
                  [](MoeConfig& c) {
                    c.top_k = 4;
                    c.shared_experts = 1;
                  }),
             {}},
        Case{"top_1_not_normalised_ep2",
             with(kSoftmax,
                  [](MoeConfig& c) {
                    c.top_k = 1;
                    c.normalise = false;
                  }),
             {.dp = 2, .ep = 2}},
        Case{"softmax_tp2_ep2", kSoftmax, {.tp = 2, .ep = 2}},
        Case{"three_slices_dp2_tp3_etp3", kSoftmax, {.dp = 2, .tp = 3, .etp = 3}},
        Case{"three_slices_tp6_ep2_etp3_sequence", kSoftmax, {.tp = 6, .ep = 2, .etp = 3}, true},
        Case{"a_sequence_on_two_ranks_tp3", kSoftmax, {.tp = 3}},
        Case{"a_sequence_on_two_ranks_tp3_shared_sequence",
             with(kSoftmax, [](MoeConfig& c) { c.shared_experts = 2; }),
             {.tp = 3},
             true},
        Case{"shared_dp2_tp2_ep4",
             with(kSoftmax, [](MoeConfig& c) { c.shared_experts = 2; }),
             {.dp = 2, .tp = 2, .ep = 4}},
        Case{"shared_dp2_tp2_ep4_sequence",
             with(kSoftmax, [](MoeConfig& c) { c.shared_experts = 2; }),
             {.dp = 2, .tp = 2, .ep = 4},
             true},
        Case{"room_for_one", with(kSoftmax, [](MoeConfig& c) { c.capacity = 0.5; }), {}},
        Case{"room_for_one_tp3_ep3",
             with(kSoftmax,
                  [](MoeConfig& c) {
                    c.experts = 3;
                    c.capacity = 0.5;
                    c.shared_experts = 2;
                  }),
             {.tp = 3, .ep = 3}},
        Case{"without_balance_loss", with(kSoftmax, [](MoeConfig& c) { c.balance_loss = 0; }), {}}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx
