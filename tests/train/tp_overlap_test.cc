// parallel.tp_overlap: chunks change when things are computed and sent, not what comes out.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "tests/train/step_models.h"
#include "tests/train/step_rank.h"

namespace phalanx {
namespace {

struct Case {
  const char* name;
  ModelConfig config;
  Layout layout;
  const char* schedule;
  bool sequence = true;
  int slices = 1;
};

// One rank's step.
struct Outcome {
  StepResult result;
  std::vector<std::vector<double>> grads;  // by parameter
  int64_t calls = 0;                       // over tp
};

std::vector<Outcome> step(const Case& c, bool overlap, unsigned seed) {
  std::vector<Outcome> out(static_cast<size_t>(c.layout.ranks()));
  run_thread_ranks({.ranks = c.layout.ranks()}, [&](Group& world) {
    const StreamConfig stream = {.sequence = c.sequence, .overlap = overlap};
    Rank rank(world, c.layout, c.config, DType::f64, c.schedule, seed, stream, 0, c.slices);
    const std::vector<Batch> micro = batches(rank.mesh, rank.model.context_share(), c.config, seed, c.slices);
    Outcome& own = out[static_cast<size_t>(world.rank())];
    own.result = compute_gradients(rank.trainer, micro, 5);
    for (const Tape& tape : rank.trainer.tapes) EXPECT_TRUE(tape.empty());
    for (Parameter& p : rank.store.all()) {
      const auto g = p.grad().span<const double>();
      own.grads.emplace_back(g.begin(), g.end());
    }
    own.calls = rank.mesh.group(Axis::tp).traffic().calls;
  });
  return out;
}

double norm(const std::vector<double>& v) {
  double squares = 0;
  for (const double x : v) squares += x * x;
  return std::sqrt(squares);
}

class TpOverlap : public testing::TestWithParam<Case> {};

// A product of fewer rows may run another kernel, which rounds in another order.
TEST_P(TpOverlap, GivesTheSameGradients) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  constexpr double kRounding = 1e-13;
  const std::vector<Outcome> plain = step(GetParam(), false, seed);
  const std::vector<Outcome> overlapped = step(GetParam(), true, seed);
  const int tp = GetParam().layout.tp;
  for (size_t r = 0; r < plain.size(); ++r) {
    SCOPED_TRACE(format("rank {}", r));
    const double all = plain[r].result.grad_norm;
    EXPECT_NEAR(overlapped[r].result.loss, plain[r].result.loss, kRounding * plain[r].result.loss);
    EXPECT_NEAR(overlapped[r].result.grad_norm, all, kRounding * all);
    for (size_t i = 0; i < plain[r].grads.size(); ++i) {
      std::vector<double> difference = plain[r].grads[i];
      for (size_t j = 0; j < difference.size(); ++j) difference[j] -= overlapped[r].grads[i][j];
      const double size = norm(plain[r].grads[i]);
      EXPECT_LE(norm(difference), kRounding * std::max(size, 1e-3 * all)) << "parameter " << i;
    }
    EXPECT_EQ(overlapped[r].calls, overlapped[r / static_cast<size_t>(tp) * static_cast<size_t>(tp)].calls);
    // With two ranks under sequence parallelism one exchange stands for one collective.
    if (!GetParam().sequence || tp > 2) {
      EXPECT_GT(overlapped[r].calls, plain[r].calls);
    }
  }
}

// With as many columns that chunks of an all_reduce are not small.
ModelConfig wide(ModelConfig c) {
  c.width = 48;
  return c;
}

// Three heads, three KV heads.
ModelConfig for_three(ModelConfig c) {
  c.mlp_width = 12;
  c.moe.expert_width = 6;
  if (c.kv_heads > 0) c.kv_heads = 3;
  c.context = 6;
  return c;
}

ModelConfig mla_for_three() {
  ModelConfig c = for_three(mla());
  c.heads = 6;
  return c;
}

// Four sequences of seven are 28 rows, seven for each of four ranks.
INSTANTIATE_TEST_SUITE_P(
    Layouts, TpOverlap,
    testing::Values(
        Case{"gpt_tp2", divisible(gpt()), {.tp = 2}, "sequential"},
        Case{"gpt_dropout_tp4_overlapped", divisible(with_dropout(gpt())), {.tp = 4}, "overlapped"},
        Case{"gpt_tp4_alike", wide(divisible(gpt())), {.tp = 4}, "sequential", false},
        Case{"llama_tp3", for_three(llama()), {.tp = 3}, "sequential"},
        Case{"llama_uneven_tp3_alike", wide(for_three(llama())), {.tp = 3}, "overlapped", false},
        Case{"llama_shared_kv_heads_tp4", divisible(llama()), {.tp = 4}, "sequential"},
        Case{"llama_odd_cp2_tp2", divisible(llama()), {.cp = 2, .tp = 2}, "sequential"},
        Case{"llama_a_rank_without_tokens_tp4",
             divisible(with_vocabulary(llama(), 5)),
             {.tp = 4},
             "sequential"},
        Case{"llama_zb_h1_pp2_tp2", divisible(llama()), {.pp = 2, .tp = 2}, "zb-h1"},
        Case{"moe_tp2_ep2_overlapped", divisible(moe()), {.tp = 2, .ep = 2}, "overlapped"},
        Case{"moe_dp2_tp2_ep4", divisible(moe()), {.dp = 2, .tp = 2, .ep = 4}, "overlapped"},
        Case{"moe_tp2_alike", wide(divisible(moe())), {.tp = 2}, "overlapped", false},
        Case{"mla_tp2", divisible(mla()), {.tp = 2}, "sequential"},
        Case{"mla_tp3_overlapped", mla_for_three(), {.tp = 3}, "overlapped"},
        Case{"mla_tp4_alike", wide(divisible(mla())), {.tp = 4}, "sequential", false},
        Case{"mla_slices_tp2", six_tokens(mla()), {.tp = 2}, "sequential", true, 3},
        Case{"gpt_slices_zb_h1_pp2_tp2", six_tokens(gpt()), {.pp = 2, .tp = 2}, "zb-h1", true, 6},
        Case{"moe_slices_tp2_ep2", six_tokens(moe()), {.tp = 2, .ep = 2}, "sequential", true, 3},
        Case{"llama_mtp_tp4", with_mtp(divisible(llama())), {.tp = 4}, "overlapped"},
        Case{"moe_mtp_zb_h1_pp2_tp2", with_mtp(divisible(moe())), {.pp = 2, .tp = 2}, "zb-h1"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx
