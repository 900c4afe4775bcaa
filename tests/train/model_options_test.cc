// Every option of [model] and [moe], in all combinations: the gradient is the slope of the loss along itself,
// and a step goes down it.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/rank_run.h"

namespace phalanx {
namespace {

constexpr int64_t kVocabulary = 11;
constexpr int64_t kContext = 6;
constexpr int64_t kSequences = 2;

Batch random_sequences(std::mt19937& random) {
  constexpr int64_t kRows = kSequences * kContext;
  Batch b = {Tensor::empty({kRows}, DType::i32), Tensor::empty({kRows}, DType::i32),
             Tensor::empty({kRows}, DType::i32), Tensor::empty({kSequences + 1}, DType::i64),
             Tensor::empty({kRows}, DType::i64)};
  for (int64_t i = 0; i < kRows; ++i) {
    b.tokens.data<int32_t>()[i] = static_cast<int32_t>(random() % kVocabulary);
    b.targets.data<int32_t>()[i] = static_cast<int32_t>(random() % kVocabulary);
    b.positions.data<int32_t>()[i] = static_cast<int32_t>(i % kContext);
    b.rows.data<int64_t>()[i] = i;
  }
  for (int64_t s = 0; s <= kSequences; ++s) b.sequence_offsets.data<int64_t>()[s] = s * kContext;
  return b;
}

std::vector<int64_t> take_expert_tokens(Transformer& model) {
  std::vector<int64_t> counts;
  for (Moe* moe : model.moe_layers()) {
    std::vector<int64_t>& layer = moe->statistics().expert_tokens;
    counts.insert(counts.end(), layer.begin(), layer.end());
    std::ranges::fill(layer, 0);
  }
  return counts;
}

// The loss with every weight moved by `distance` along `direction`.
double loss_at(RankRun& rank, std::span<const Batch> batches, std::span<const double> direction,
               double distance) {
  const auto weights = rank.parameters().values().span<double>();
  for (size_t i = 0; i < weights.size(); ++i) weights[i] += distance * direction[i];
  const StepResult r = compute_gradients(rank.trainer(), batches, 4);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] -= distance * direction[i];
  const MoeConfig& moe = rank.config().model.moe;
  return r.loss + moe.balance_loss * r.balance_loss + moe.z_loss * r.z_loss +
         rank.config().model.mtp_weight * r.mtp_loss;
}

// False when a token changed its expert on the way, where the loss has no slope.
bool check_model(const std::vector<std::string>& options, unsigned seed) {
  std::vector<std::string> overrides = {
      "model.layers=2",     "model.width=8",     "model.heads=2",      "model.context=6",
      "model.init_std=0.3", "model.mlp_width=7", "train.dtype=f64",    "train.batch=2",
      "train.microbatch=1", "moe.experts=3",     "moe.expert_width=5", "train.seed=" + std::to_string(seed)};
  overrides.insert(overrides.end(), options.begin(), options.end());
  bool compared = false;
  run_thread_ranks({.ranks = 1, .threads_per_rank = 1}, [&](Group& world) {
    SCOPED_TRACE(::testing::PrintToString(overrides));
    RankRun rank(parse_train_config("", "options", overrides), kVocabulary, world);
    std::mt19937 random(seed);
    const std::vector<Batch> batches = {random_sequences(random), random_sequences(random)};
    compute_gradients(rank.trainer(), batches, 4);
    const auto routing = take_expert_tokens(rank.model());
    std::vector<double> direction;
    for (const Bucket& b : rank.parameters().buckets()) {
      const auto grads = rank.parameters().share_of_grads(b).span<double>();
      direction.insert(direction.end(), grads.begin(), grads.end());
    }
    double squares = 0;
    for (const double g : direction) squares += g * g;
    for (double& g : direction) g /= std::sqrt(squares);

    // Where a norm's input is near zero the loss bends sharply: the error of the difference, in the fourth
    // power of the step, was seen to be 1e-4 of the slope at a step of 1e-4. Rounding is 1e-10 at this one.
    constexpr double kStep = 1e-5;
    double slope = 0;
    bool same_routing = true;
    for (const auto& [steps, factor] : {std::pair{1, 8.0}, {-1, -8.0}, {2, -1.0}, {-2, 1.0}}) {
      slope += factor * loss_at(rank, batches, direction, steps * kStep) / (12 * kStep);
      same_routing = take_expert_tokens(rank.model()) == routing && same_routing;
    }
    if (!same_routing) return;
    compared = true;
    EXPECT_NEAR(slope, std::sqrt(squares), 1e-5 * std::sqrt(squares));
    const double before = loss_at(rank, batches, direction, 0);
    train_step(rank.trainer(), batches, 1e-5, 4);
    take_expert_tokens(rank.model());
    const double after = loss_at(rank, batches, direction, 0);
    if (take_expert_tokens(rank.model()) == routing) {
      EXPECT_LT(after, before);
    }
  });
  return compared;
}

class ModelOptions : public ::testing::TestWithParam<std::vector<std::string>> {};

TEST_P(ModelOptions, TheGradientIsTheSlopeOfTheLoss) {
  const unsigned seed = std::random_device{}();
  int compared = 0;
  int all = 0;
  for (int bits = 0; bits < 64; ++bits) {
    std::vector<std::string> options = GetParam();
    const auto choose = [&](int bit, const char* zero, const char* one) {
      options.emplace_back((bits >> bit & 1) != 0 ? one : zero);
    };
    choose(0, "model.norm=rmsnorm", "model.norm=layernorm");
    choose(1, "model.positions=rope", "model.positions=learned");
    choose(2, "model.bias=false", "model.bias=true");
    choose(3, "model.tied=false", "model.tied=true");
    choose(4, "model.kv_heads=0", "model.kv_heads=1");
    choose(5, "model.dropout=0", "model.dropout=0.2");
    ++all;
    compared += check_model(options, seed + static_cast<unsigned>(bits)) ? 1 : 0;
  }
  EXPECT_GT(compared, all / 2);
}

INSTANTIATE_TEST_SUITE_P(
    Mlps, ModelOptions,
    ::testing::Values(
        std::vector<std::string>{"model.mlp=gelu"}, std::vector<std::string>{"model.mlp=gelu_tanh"},
        std::vector<std::string>{"model.mlp=swiglu", "model.head_dim=6"},
        std::vector<std::string>{"model.mlp=moe", "moe.shared_experts=1"},
        std::vector<std::string>{"model.mlp=moe", "moe.scores=sigmoid", "moe.scaling=1.5"},
        std::vector<std::string>{"model.mlp=moe", "moe.z_loss=0.2", "moe.groups=3", "moe.share_layers=2",
                                 "moe.top_groups=2", "moe.bias_rate=0.01"},
        std::vector<std::string>{"model.mlp=moe", "moe.z_loss=0.2", "moe.scores=sigmoid",
                                 "moe.balance_loss=0", "moe.capacity=0.6"},
        std::vector<std::string>{"model.mlp=moe", "moe.top_k=1", "moe.normalise=false", "moe.dense_layers=1"},
        std::vector<std::string>{"model.mlp=moe", "moe.top_k=3", "moe.balance_loss=0",
                                 "train.schedule=overlapped"}));

}  // namespace
}  // namespace phalanx
