// What a traced step says that it did, beside what the formulas say that a step does.
#include "phalanx/train/profile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <random>
#include <string_view>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/flops.h"
#include "tests/train/small_runs.h"

namespace phalanx {
namespace {

struct Case {
  const char* name;
  TrainConfig (*config)(const Layout&, const char*);
  Layout layout;
  const char* schedule;
};

class ProfileTest : public testing::TestWithParam<Case> {};

// The work of one step's spans, by kind, of all ranks together.
std::array<int64_t, kTraceKinds> traced_work(const TrainConfig& config, const Dataset& data) {
  std::array<int64_t, kTraceKinds> work{};
  std::mutex mutex;
  run_thread_ranks({.ranks = config.parallel.ranks}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    const std::vector<Batch> batches = data.train_batches(0, rank.share());
    TraceRing ring;
    {
      const TraceScope scope(&ring);
      train_step(rank.trainer(), batches, 1e-3, 0);
    }
    const std::lock_guard lock(mutex);
    int64_t end_ns = 0;
    for (const Span& span : ring.spans()) {
      if (span.row == TraceRow::comm || span.kind == TraceKind::part) continue;
      work[static_cast<size_t>(span.kind)] += span.detail;
      EXPECT_GE(span.begin_ns, end_ns) << span.name << " lies inside the span before it";
      end_ns = span.end_ns;
    }
  });
  return work;
}

TEST_P(ProfileTest, SpansDoTheOperationsOfTheFormulas) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const TrainConfig config = GetParam().config(GetParam().layout, GetParam().schedule);
  const Dataset data = random_text(config, seed);
  const auto work = traced_work(config, data);
  ModelConfig model = config.model;
  model.vocabulary = data.tokenizer().vocabulary();
  const int64_t tokens = config.train.batch * model.context;
  EXPECT_EQ(work[static_cast<size_t>(TraceKind::product)],
            tokens * static_cast<int64_t>(training_flops_per_token(model).products));
  // Each token sees itself and those before it: two products forward, five backward.
  const int64_t seen = config.train.batch * model.context * (model.context + 1) / 2;
  EXPECT_EQ(work[static_cast<size_t>(TraceKind::attention)],
            2 * (2 + 5) * seen * model.heads * model.head_dim * model.blocks());
  // Weights, gradients and both moments are read, all but gradients written; before, the gradients are
  // cleared of those weights that no product writes: norms and tables.
  const Layout& layout = GetParam().layout;
  const int64_t experts = model.mlp == MlpKind::moe
                              ? (model.blocks() - model.moe.dense_layers) * model.moe.experts * 3 *
                                    model.width * model.moe.expert_width
                              : 0;
  const int64_t held =
      (count_parameters(model).total - experts) * layout.dp + experts * layout.dp / layout.ep;
  const int64_t optimizer = work[static_cast<size_t>(TraceKind::optimizer)];
  EXPECT_GT(optimizer, 7 * 4 * held);
  EXPECT_LT(optimizer, 8 * 4 * held);
}

TEST_P(ProfileTest, ThePartsMakeTheStep) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const TrainConfig config = GetParam().config(GetParam().layout, GetParam().schedule);
  const Dataset data = random_text(config, seed);
  int told = 0;
  run_thread_ranks({.ranks = config.parallel.ranks, .threads_per_rank = 1}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    const StepProfile p =
        profile_steps(rank, data, world, {.warmup = 2, .steps = 3, .on_step = [&](int done, int steps) {
                                            EXPECT_EQ(done, ++told);
                                            EXPECT_EQ(steps, 5);
                                          }});
    double sum = 0;
    for (const StepPart& part : p.parts) sum += part.achieved;
    EXPECT_NEAR(sum, p.seconds, 1e-9);
    double of_ops = p.parts[static_cast<size_t>(TraceKind::other)].achieved;
    for (const OpPart& op : p.ops) {
      of_ops += op.achieved;
      EXPECT_GT(op.calls, 0) << op.name;
      EXPECT_TRUE(op.floor > 0 || op.kind == TraceKind::communication) << op.name;
    }
    EXPECT_NEAR(of_ops, p.seconds, 1e-9);
    EXPECT_TRUE(std::ranges::is_sorted(p.ops, std::ranges::greater(), &OpPart::achieved));
    const auto weights = std::ranges::find(p.ops, std::string_view("matmul_tn_into"), &OpPart::name);
    ASSERT_NE(weights, p.ops.end());
    EXPECT_EQ(weights->kind, TraceKind::product);
    for (const TraceKind kind :
         {TraceKind::product, TraceKind::attention, TraceKind::elementwise, TraceKind::optimizer}) {
      const StepPart& part = p.parts[static_cast<size_t>(kind)];
      EXPECT_GT(part.floor, 0) << static_cast<int>(kind);
      EXPECT_GT(part.achieved, 0) << static_cast<int>(kind);
    }
    EXPECT_GE(p.parts[static_cast<size_t>(TraceKind::other)].achieved, 0);
    EXPECT_EQ(p.parts[static_cast<size_t>(TraceKind::communication)].floor > 0, world.size() > 1);
    EXPECT_NEAR(p.tokens_per_s * p.seconds, static_cast<double>(config.train.batch * config.model.context),
                1e-6);
    EXPECT_GT(p.gemm_share(), 0);
    EXPECT_NEAR(static_cast<double>(p.measured.peak) / static_cast<double>(p.memory.total()), 1, 0.15);
  });
  EXPECT_EQ(told, 5);
}

INSTANTIATE_TEST_SUITE_P(Runs, ProfileTest,
                         testing::Values(Case{"gpt", small_gpt, {}, "sequential"},
                                         Case{"llama_dp2", small_llama, {.dp = 2}, "overlapped"},
                                         Case{"moe", small_moe, {}, "sequential"},
                                         Case{"mtp_dp2_ep2", small_mtp, {.dp = 2, .ep = 2}, "sequential"},
                                         Case{"moe_dp2_ep2", small_moe, {.dp = 2, .ep = 2}, "overlapped"}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx
