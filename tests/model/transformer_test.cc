// What must hold for a decoder of any kind: causality, sequences apart, tied embeddings, dropout by row.
#include "phalanx/model/transformer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ops/cross_entropy.h"
#include "tests/model/tiny_model.h"

namespace phalanx {
namespace {

using phalanx::testing::random_batch;
using phalanx::testing::sequences_of;
using phalanx::testing::TinyModel;

constexpr double kRounding = 1e-11;

ModelConfig gpt() {
  return {.vocabulary = 13,
          .layers = 2,
          .width = 12,
          .heads = 3,
          .context = 9,
          .norm = NormKind::layernorm,
          .positions = Positions::learned,
          .mlp = MlpKind::gelu_tanh,
          .mlp_width = 10,
          .bias = true,
          .init_std = 0.4};
}

ModelConfig llama() {
  return {.vocabulary = 13,
          .layers = 2,
          .width = 12,
          .heads = 3,
          .kv_heads = 1,
          .context = 9,
          .mlp_width = 10,
          .tied = false,
          .init_std = 0.4};
}

ModelConfig moe() {
  ModelConfig c = llama();
  c.mlp = MlpKind::moe;
  c.moe = {.experts = 4, .top_k = 2, .expert_width = 5, .shared_experts = 1};
  return c;
}

struct Case {
  const char* name;
  ModelConfig config;
};

class AnyTransformer : public ::testing::TestWithParam<Case> {
 protected:
  void with_model(const ModelConfig& config, const std::function<void(TinyModel&, std::mt19937&)>& body) {
    SCOPED_TRACE(seed_);
    run_thread_ranks({.ranks = 1}, [&](Group& world) {
      std::mt19937 random(seed_);
      TinyModel model(world, {}, config, seed_);
      body(model, random);
    });
  }
  const ModelConfig& config() const { return GetParam().config; }

  const unsigned seed_ = std::random_device{}();
};

double loss(TinyModel& model, const Batch& batch, bool training = false, uint64_t step = 0) {
  Tape tape;
  tape.set_keeping(false);
  return number_of(
      run(model.transformer.forward({.batch = &batch, .step = step, .training = training}, tape)));
}

// The loss of each row by itself.
std::vector<double> row_losses(TinyModel& model, const Batch& batch) {
  std::vector<double> losses;
  for (int64_t row = 0; row < batch.tokens.rows(); ++row) {
    Batch one = batch;
    one.targets = Tensor::empty(batch.targets.shape(), DType::i32);
    std::ranges::fill(one.targets.span<int32_t>(), kIgnore);
    one.targets.data<int32_t>()[row] = 3;
    losses.push_back(loss(model, one));
  }
  return losses;
}

TEST_P(AnyTransformer, ATokenChangesNothingBeforeItAndInOtherSequences) {
  with_model(config(), [&](TinyModel& model, std::mt19937& random) {
    const int64_t context = config().context;
    const Batch batch = random_batch(random, 3, config());
    const std::vector<double> before = row_losses(model, batch);
    const int64_t changed = context + 1 + random() % (context - 2);  // in the middle of the second sequence
    int32_t& token = batch.tokens.data<int32_t>()[changed];
    token = static_cast<int32_t>((token + 1) % config().vocabulary);
    const std::vector<double> after = row_losses(model, batch);
    for (int64_t row = 0; row < batch.tokens.rows(); ++row) {
      const double difference = std::abs(after[static_cast<size_t>(row)] - before[static_cast<size_t>(row)]);
      if (row >= changed && row < 2 * context) {
        EXPECT_GT(difference, 1e-8) << "row " << row << " does not see the token at " << changed;
      } else {
        EXPECT_LT(difference, kRounding) << "row " << row << " sees the token at " << changed;
      }
    }
  });
}

TEST_P(AnyTransformer, TheLossIsThatOfTheLogitsOfEachPrefix) {
  with_model(config(), [&](TinyModel& model, std::mt19937& random) {
    const Batch batch = random_batch(random, 1, config());
    double sum = 0;
    for (int64_t n = 1; n <= config().context; ++n) {
      const int32_t target = batch.targets.data<int32_t>()[n - 1];
      if (target == kIgnore) continue;
      Batch prefix = batch;
      for (Tensor* t : {&prefix.tokens, &prefix.positions, &prefix.rows}) *t = t->slice(0, n);
      prefix.sequence_offsets = Tensor::zeros({2}, DType::i64);
      prefix.sequence_offsets.data<int64_t>()[1] = n;
      Tape tape;
      tape.set_keeping(false);
      const Tensor logits = run(model.transformer.next_token_logits({.batch = &prefix}, tape));
      double total = 0;
      for (const double v : logits.span<double>()) total += std::exp(v);
      sum += std::log(total) - logits.data<double>()[target];
    }
    EXPECT_NEAR(loss(model, batch), sum, kRounding * (1 + sum));
  });
}

TEST_P(AnyTransformer, TiedEmbeddingsGetTheGradientOfBothUses) {
  ModelConfig untied = config();
  untied.tied = false;
  ModelConfig tied = config();
  tied.tied = true;
  const auto gradient = [&](TinyModel& model, const Batch& batch) {
    Tape tape;
    const Pass pass = {.batch = &batch, .scale = 0.1, .training = true};
    run(model.transformer.forward(pass, tape));
    run(model.transformer.backward(pass, tape));
  };
  with_model(untied, [&](TinyModel& apart, std::mt19937& random) {
    const Batch batch = random_batch(random, 2, untied);
    const auto table = apart.parameter("embedding.w").value().span<double>();
    std::ranges::copy(table, apart.parameter("head.w").value().span<double>().begin());
    gradient(apart, batch);
    TinyModel together(apart.mesh.group(Axis::dp), {}, tied, seed_);
    gradient(together, batch);
    const auto sum = together.parameter("embedding.w").grad().span<double>();
    const auto in = apart.parameter("embedding.w").grad().span<double>();
    const auto out = apart.parameter("head.w").grad().span<double>();
    for (size_t i = 0; i < sum.size(); ++i) EXPECT_NEAR(sum[i], in[i] + out[i], kRounding);
  });
}

TEST_P(AnyTransformer, DropoutGoesByTheRowAndTheStep) {
  ModelConfig dropping = config();
  dropping.dropout = 0.3;
  with_model(dropping, [&](TinyModel& model, std::mt19937& random) {
    const Batch batch = random_batch(random, 4, dropping, 100);
    const double whole = loss(model, batch, true, 7);
    double parts = 0;
    for (const auto& [begin, end] : {std::pair{0, 1}, std::pair{1, 3}, std::pair{3, 4}}) {
      parts += loss(model, sequences_of(batch, begin, end, dropping.context), true, 7);
    }
    EXPECT_NEAR(parts, whole, kRounding * whole);
    EXPECT_GT(std::abs(loss(model, batch, true, 8) - whole), 1e-6) << "the same mask in another step";
    const double without = loss(model, batch);
    EXPECT_GT(std::abs(without - whole), 1e-6) << "nothing is dropped";
    EXPECT_EQ(loss(model, batch, false, 8), without);
    Batch elsewhere = batch;
    elsewhere.rows = random_batch(random, 4, dropping, 5000).rows;
    EXPECT_GT(std::abs(loss(model, elsewhere, true, 7) - whole), 1e-6) << "the same mask in other rows";
  });
}

TEST_P(AnyTransformer, ATapeIsEmptyAfterBackward) {
  with_model(config(), [&](TinyModel& model, std::mt19937& random) {
    const Batch batch = random_batch(random, 2, config());
    const Pass pass = {.batch = &batch, .scale = 1, .training = true};
    Tape tape;
    run(model.transformer.forward(pass, tape));
    EXPECT_FALSE(tape.empty());
    run(model.transformer.backward(pass, tape));
    EXPECT_TRUE(tape.empty());
  });
}

INSTANTIATE_TEST_SUITE_P(Models, AnyTransformer,
                         ::testing::Values(Case{"gpt", gpt()}, Case{"llama", llama()}, Case{"moe", moe()}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx
