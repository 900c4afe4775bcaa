// Ranks that route parts of the same rows decide as one rank that has them all, to the bit, in f32: whatever
// the layout, and whatever is dropped.
#include <gtest/gtest.h>

#include <mutex>
#include <numeric>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/moe.h"

namespace phalanx {
namespace {

// T tokens, D width, E experts, K top-k

constexpr int64_t kLength = 24;
constexpr int64_t kSequences = 4;
constexpr int64_t kTokens = kLength * kSequences;
constexpr int64_t kTopK = 3;

struct Case {
  Layout layout;
  bool sequence = false;
};

struct Choices {
  std::vector<int64_t> idx_TK = std::vector<int64_t>(kTokens * kTopK);
  std::vector<float> weights_TK = std::vector<float>(kTokens * kTopK);
};

ModelConfig config_of(int64_t width, int experts, Scores scores) {
  ModelConfig c = {.vocabulary = 2, .layers = 1, .width = width, .heads = 1, .mlp = MlpKind::moe};
  c.moe = {.experts = experts,
           .top_k = kTopK,
           .expert_width = 8,
           .scores = scores,
           .groups = 4,
           .top_groups = 2,
           .z_loss = 0.01,
           .capacity = 0.9};
  return resolved(c);
}

std::vector<float> random_rows(int64_t width, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(kTokens * width));
  for (float& v : x) v = normal(random);
  // Neighbours alike, so that equal scores meet on different ranks.
  std::copy_n(x.begin(), 7 * width, x.begin() + 7 * width);
  return x;
}

Choices choices(const ModelConfig& config, const Case& c, const std::vector<float>& x, unsigned seed) {
  Choices out;
  std::mutex mutex;
  run_thread_ranks({.ranks = c.layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, c.layout);
    ParameterStore store(mesh, DType::f32);
    TensorParallel tensor(mesh, {.sequence = c.sequence});
    ContextParallel context(mesh, 1);
    DataParallel data(store);
    Router router({store, data, tensor, context, config}, "router", 0);
    store.initialise(seed);
    const State& bias = store.states().front();
    for (int64_t e = 0; e < bias.value.numel(); ++e) {
      bias.value.data<float>()[e] = 0.01F * static_cast<float>(e % 5);
    }
    const int64_t sequences = kSequences / mesh.size(Axis::dp);
    const int64_t first = mesh.coordinate(Axis::dp) * sequences * kLength;
    Batch batch = {.tokens = Tensor::zeros({sequences * kLength}, DType::i32),
                   .targets = Tensor::zeros({sequences * kLength}, DType::i32),
                   .positions = Tensor::zeros({sequences * kLength}, DType::i32),
                   .sequence_offsets = Tensor::empty({sequences + 1}, DType::i64),
                   .rows = Tensor::empty({sequences * kLength}, DType::i64)};
    for (int64_t s = 0; s <= sequences; ++s) batch.sequence_offsets.data<int64_t>()[s] = s * kLength;
    std::iota(batch.rows.span<int64_t>().begin(), batch.rows.span<int64_t>().end(), first);
    batch = own_tokens(batch, context.share());
    const Tensor own_rows = tensor.own_rows(batch.rows);
    const Tensor own_x = Tensor::empty({own_rows.rows(), config.width}, DType::f32);
    for (int64_t i = 0; i < own_rows.rows(); ++i) {
      std::copy_n(x.begin() + own_rows.data<int64_t>()[i] * config.width, config.width,
                  own_x.data<float>() + i * config.width);
    }
    Tape tape;
    const Routing routing = run(router.forward(own_x, {.batch = &batch, .training = true}, tape));
    tape.clear();
    const std::lock_guard lock(mutex);
    for (int64_t i = 0; i < own_rows.rows(); ++i) {
      const int64_t at = own_rows.data<int64_t>()[i] * kTopK;
      std::copy_n(routing.topk_idx_TK.data<int64_t>() + i * kTopK, kTopK, out.idx_TK.begin() + at);
      std::copy_n(routing.weights_TK.data<float>() + i * kTopK, kTopK, out.weights_TK.begin() + at);
    }
  });
  return out;
}

TEST(Router, EveryLayoutDecidesAlike) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const auto& [width, experts] : {std::pair{int64_t{38}, 8}, {int64_t{320}, 64}}) {
    for (const Scores scores : {Scores::softmax, Scores::sigmoid}) {
      const ModelConfig config = config_of(width, experts, scores);
      const std::vector<float> x = random_rows(width, seed);
      const Choices one = choices(config, {}, x, seed);
      EXPECT_GT(std::ranges::count(one.idx_TK, -1), 0);
      for (const Case& c :
           {Case{{.dp = 4}}, Case{{.tp = 2}}, Case{{.tp = 4}, true}, Case{{.cp = 4}},
            Case{{.dp = 2, .cp = 2}}, Case{{.cp = 2, .tp = 4}}, Case{{.dp = 2, .cp = 2, .tp = 2}, true}}) {
        const Choices many = choices(config, c, x, seed);
        EXPECT_EQ(many.idx_TK, one.idx_TK) << c.layout.text();
        EXPECT_EQ(many.weights_TK, one.weights_TK) << c.layout.text();
      }
    }
  }
}

}  // namespace
}  // namespace phalanx
