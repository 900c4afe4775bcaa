// The bytes that context parallelism moves in a step of a model: the formula of its header.
#include <gtest/gtest.h>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/parallel/context_parallel.h"
#include "tests/model/tiny_model.h"

namespace phalanx {
namespace {

struct Case {
  int cp;
  int ulysses;
  int heads;
  int kv_heads;
};

class ContextParallelTraffic : public ::testing::TestWithParam<Case> {};

TEST_P(ContextParallelTraffic, IsTheFormula) {
  const auto [cp, ulysses, heads, kv_heads] = GetParam();
  const ModelConfig config = resolved({.vocabulary = 50,
                                       .layers = 3,
                                       .width = 4 * heads,
                                       .heads = heads,
                                       .kv_heads = kv_heads,
                                       .context = 48,
                                       .mlp_width = 24});
  constexpr int64_t kSequences = 3;
  const int64_t item = 8 * config.head_dim * config.layers;
  const int64_t rows = kSequences * config.context;
  const int ring = cp / ulysses;
  const int64_t of_ulysses =
      2 * (2 * heads + 2 * std::max(kv_heads, ulysses)) * item * (rows / cp) * (ulysses - 1) / ulysses;
  const int64_t of_ring =
      ring == 1 ? 0 : (6 * ring - 4) * (rows / ring) * std::max(kv_heads / ulysses, 1) * item;
  run_thread_ranks({.ranks = cp}, [&, cp = cp, ulysses = ulysses](Group& world) {
    Mesh mesh(world, {.cp = cp});
    ParameterStore store(mesh, DType::f64);
    Transformer model(store, config, 1, {}, ulysses);
    store.initialise(1);
    std::mt19937 random(1);
    const Batch batch =
        own_tokens(phalanx::testing::random_batch(random, kSequences, config), model.context_share());
    const Pass pass = {.batch = &batch, .scale = 1, .training = true};
    const Traffic before = mesh.traffic();
    Tape tape;
    run(model.forward(pass, tape));
    run(model.backward(pass, tape));
    EXPECT_EQ(mesh.traffic().sent - before.sent, of_ulysses + of_ring);
    EXPECT_EQ(mesh.traffic().received - before.received, of_ulysses + of_ring);
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, ContextParallelTraffic,
                         ::testing::Values(Case{2, 2, 4, 2}, Case{2, 1, 3, 3}, Case{3, 1, 4, 2},
                                           Case{4, 2, 4, 4}, Case{4, 2, 6, 1}, Case{8, 4, 4, 2},
                                           Case{8, 1, 2, 1}),
                         [](const auto& info) {
                           return format("cp{}_ulysses{}_{}_{}heads", info.param.cp, info.param.ulysses,
                                         info.param.heads, info.param.kv_heads);
                         });

}  // namespace
}  // namespace phalanx
