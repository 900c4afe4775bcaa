// What tensor parallelism promises beside the gradients (tests/train/step_test.cc): the bytes that it moves,
// and what it refuses.
#include "phalanx/parallel/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "phalanx/base/error.h"
#include "phalanx/comm/transport/threads.h"
#include "tests/model/tiny_model.h"

namespace phalanx {
namespace {

using phalanx::testing::random_batch;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

ModelConfig llama() {
  return {
      .vocabulary = 50, .layers = 3, .width = 32, .heads = 8, .kv_heads = 2, .context = 32, .mlp_width = 24};
}

struct Case {
  int tp;
  StreamConfig stream;
};

class TensorParallelTraffic : public ::testing::TestWithParam<Case> {};

// The formula of the header, in chunks or not.
TEST_P(TensorParallelTraffic, IsTheFormula) {
  const auto [tp, stream] = GetParam();
  const ModelConfig config = llama();
  constexpr int64_t kSequences = 4;
  const int64_t rows = kSequences * config.context;
  const int64_t conversions = stream.sequence ? 10 * config.layers + 5 : 8 * config.layers + 4;
  const int64_t one = rows * config.width * 8 / tp * (tp - 1);
  const int64_t loss = rows * 3 * 8 * (tp - 1);
  run_thread_ranks({.ranks = tp}, [&, tp = tp, stream = stream](Group& world) {
    Mesh mesh(world, {.tp = tp});
    ParameterStore store(mesh, DType::f64);
    Transformer model(store, resolved(config), 1, stream);
    store.initialise(1);
    std::mt19937 random(1);
    const Batch batch = random_batch(random, kSequences, config);
    const Pass pass = {.batch = &batch, .scale = 1, .training = true};
    Tape tape;
    run(model.forward(pass, tape));
    run(model.backward(pass, tape));
    EXPECT_EQ(mesh.group(Axis::tp).traffic().sent, conversions * one + loss);
    EXPECT_EQ(mesh.group(Axis::tp).traffic().received, conversions * one + loss);
    const auto messages = mesh.group(Axis::tp).traffic(Fingerprint::Kind::exchange).calls;
    EXPECT_EQ(messages > 0, stream.overlap && stream.sequence);
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, TensorParallelTraffic,
                         ::testing::Values(Case{2, {}}, Case{2, {.sequence = true}}, Case{4, {}},
                                           Case{4, {.sequence = true}}, Case{8, {.sequence = true}},
                                           Case{4, {.overlap = true}},
                                           Case{2, {.sequence = true, .overlap = true}},
                                           Case{8, {.sequence = true, .overlap = true}}),
                         [](const auto& info) {
                           const StreamConfig& stream = info.param.stream;
                           return format("tp{}{}{}", info.param.tp, stream.sequence ? "_sequence" : "",
                                         stream.overlap ? "_in_chunks" : "");
                         });

// Sequence parallelism only changes who holds which rows: the loss has the same bits.
TEST(TensorParallel, TheLossHasTheSameBitsWithAndWithoutSequenceParallelism) {
  for (const int tp : {2, 4}) {
    double losses[2] = {};
    for (const bool sequence : {false, true}) {
      run_thread_ranks({.ranks = tp}, [&](Group& world) {
        Mesh mesh(world, {.tp = tp});
        ParameterStore store(mesh, DType::f32);
        Transformer model(store, resolved(llama()), 1, {.sequence = sequence});
        store.initialise(1);
        std::mt19937 random(1);
        const Batch batch = random_batch(random, 2, llama());
        Tape tape;
        const double loss = number_of(run(model.forward({.batch = &batch}, tape)));
        if (world.rank() == tp - 1) losses[sequence ? 1 : 0] = loss;
      });
    }
    EXPECT_EQ(losses[0], losses[1]) << tp;
  }
}

TEST(TensorParallel, OwnOffsetsCutSequencesWhereTheRowsAreCut) {
  run_thread_ranks({.ranks = 3}, [](Group& world) {
    Mesh mesh(world, {.tp = 3});
    const TensorParallel tensor(mesh, {.sequence = true});
    const std::vector<int64_t> offsets = {0, 3, 3, 8, 12};
    const Tensor own = tensor.own_offsets(Tensor::of(Shape{5}, std::span<const int64_t>(offsets)));
    const std::vector<int64_t> expected[] = {{0, 3, 3, 4, 4}, {0, 0, 0, 4, 4}, {0, 0, 0, 0, 4}};
    const auto got = own.span<int64_t>();
    EXPECT_EQ(std::vector<int64_t>(got.begin(), got.end()), expected[world.rank()]);
  });
}

TEST(TensorParallel, AModelThatItDoesNotDivideIsRefused) {
  EXPECT_THAT(
      [] {
        run_thread_ranks({.ranks = 3}, [](Group& world) {
          Mesh mesh(world, {.tp = 3});
          ParameterStore store(mesh, DType::f32);
          const Transformer model(store, resolved(llama()), 1);
        });
      },
      ThrowsMessage<Error>(
          HasSubstr("layout tp=3: tp = 3 does not fit model.heads 8: it may be 1, 2, 4 or 8")));
}

}  // namespace
}  // namespace phalanx
