// A whole training step: every kind of model, layout and schedule against one rank.
#include "phalanx/train/step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "tests/train/step_models.h"
#include "tests/train/step_rank.h"

namespace phalanx {
namespace {

struct Case {
  const char* name;
  ModelConfig config;
  DType dtype;
  Layout layout;
  const char* schedule;
  bool sequence = false;
  int ulysses = 0;
  int slices = 1;
};

struct Outcome {
  StepResult first;
  double last_loss = 0;
  double evaluated = 0;
  std::map<std::string, std::vector<double>> grads;    // full tensors
  std::map<std::string, std::vector<double>> weights;  // after the steps
};

void place(std::vector<double>& full, const Parameter& p, const Tensor& local) {
  full.resize(static_cast<size_t>(p.slice().full.numel()));
  visit_float(local.dtype(), [&](auto t) {
    for (int64_t i = 0; i < local.numel(); ++i) {
      full[static_cast<size_t>(p.slice().global_index(i))] =
          static_cast<double>(local.data<decltype(t)>()[i]);
    }
  });
}

Outcome train(const Case& c, unsigned seed) {
  Outcome out;
  std::mutex mutex;
  run_thread_ranks({.ranks = c.layout.ranks()}, [&](Group& world) {
    Rank rank(world, c.layout, c.config, c.dtype, c.schedule, seed, {.sequence = c.sequence}, c.ulysses,
              c.slices);
    const std::vector<Batch> micro = batches(rank.mesh, rank.model.context_share(), c.config, seed, c.slices);
    const StepResult first = compute_gradients(rank.trainer, micro, 5);
    for (const Tape& tape : rank.trainer.tapes) EXPECT_TRUE(tape.empty());
    {
      const std::lock_guard lock(mutex);
      out.first = first;
      for (Parameter& p : rank.store.all()) place(out.grads[p.name()], p, p.grad());
    }
    StepResult last{};
    for (uint64_t i = 0; i < 3; ++i) last = train_step(rank.trainer, micro, 1e-2, i);
    const double evaluated = evaluate(rank.trainer, micro);
    const std::lock_guard lock(mutex);
    out.last_loss = last.loss;
    out.evaluated = evaluated;
    for (const Parameter& p : rank.store.all()) place(out.weights[p.name()], p, p.value());
  });
  return out;
}

using FullTensors = std::map<std::string, std::vector<double>>;

double norm(const std::vector<double>& v) {
  double squares = 0;
  for (const double x : v) squares += x * x;
  return std::sqrt(squares);
}

// The error of one tensor against the reference's, relative to its size.
double relative_error(const FullTensors& got, const FullTensors& reference, const std::string& name) {
  std::vector<double> difference = reference.at(name);
  for (size_t i = 0; i < difference.size(); ++i) difference[i] -= got.at(name)[i];
  return norm(difference) / std::max(norm(reference.at(name)), 1e-20);
}

// Softmax ignores what a key's bias adds to every score: its gradient is rounding, in any layout.
bool vanishes(const std::string& name) { return name.ends_with("attention.k.b"); }

class StepTest : public testing::TestWithParam<Case> {};

TEST_P(StepTest, EqualsOneRank) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const Case& c = GetParam();
  const Outcome one = train({c.name, c.config, c.dtype, {}, "sequential"}, seed);
  const Outcome many = train(c, seed);
  // Accumulation order differs; in f32 a near-tie of two experts may also fall the other way, hence the f64
  // cases.
  const double tolerance = c.dtype == DType::f64 ? 1e-11 : 5e-4;
  EXPECT_NEAR(many.first.loss, one.first.loss, tolerance * one.first.loss);
  EXPECT_NEAR(many.first.balance_loss, one.first.balance_loss, tolerance * one.first.loss);
  EXPECT_NEAR(many.first.mtp_loss, one.first.mtp_loss, tolerance * one.first.loss);
  EXPECT_NEAR(many.first.grad_norm, one.first.grad_norm, tolerance * one.first.grad_norm);
  EXPECT_EQ(many.first.targets, one.first.targets);
  if (c.config.dropout == 0) {  // else its noise may hide what three steps gain
    EXPECT_LT(many.last_loss, many.first.loss);
  }
  for (const auto& [name, grad] : one.grads) {
    if (vanishes(name)) {
      EXPECT_LT(norm(many.grads.at(name)), 1e-5 * many.first.grad_norm) << name;
      continue;
    }
    EXPECT_LT(relative_error(many.grads, one.grads, name), tolerance) << name;
    if (c.dtype == DType::f64) {
      EXPECT_LT(relative_error(many.weights, one.weights, name), 1e-8) << name;
    }
  }
  if (c.dtype == DType::f64) {
    EXPECT_NEAR(many.evaluated, one.evaluated, 1e-8);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, StepTest,
    testing::Values(
        Case{"gpt_overlapped", gpt(), DType::f64, {}, "overlapped"},
        Case{"gpt_dp2", gpt(), DType::f64, {.dp = 2}, "sequential"},
        Case{"llama_dp4", llama(), DType::f64, {.dp = 4}, "overlapped"},
        Case{"moe_dp2", moe(), DType::f64, {.dp = 2}, "sequential"},
        Case{"moe_dp2_ep2", moe(), DType::f64, {.dp = 2, .ep = 2}, "overlapped"},
        Case{"moe_dp4_ep2", moe(), DType::f64, {.dp = 4, .ep = 2}, "overlapped"},
        Case{"moe_dp4_ep4", moe(), DType::f64, {.dp = 4, .ep = 4}, "sequential"},
        Case{"sigmoid_dp4_ep2", sigmoid_moe_with_dropout(), DType::f64, {.dp = 4, .ep = 2}, "overlapped"},
        Case{"gpt_tp2", divisible(gpt()), DType::f64, {.tp = 2}, "sequential"},
        Case{"gpt_tp4_sequence", divisible(gpt()), DType::f64, {.tp = 4}, "overlapped", true},
        Case{"gpt_dropout_dp2_tp2_sequence",
             divisible(with_dropout(gpt())),
             DType::f64,
             {.dp = 2, .tp = 2},
             "sequential",
             true},
        Case{"gpt_dropout_tp2", divisible(with_dropout(gpt())), DType::f64, {.tp = 2}, "sequential"},
        Case{"llama_shared_kv_heads_tp4", divisible(llama()), DType::f64, {.tp = 4}, "overlapped"},
        Case{"llama_shared_kv_heads_dp2_tp4",
             divisible(llama()),
             DType::f64,
             {.dp = 2, .tp = 4},
             "sequential"},
        Case{"llama_shared_kv_heads_tp4_sequence",
             divisible(llama()),
             DType::f64,
             {.tp = 4},
             "sequential",
             true},
        Case{"llama_a_rank_without_tokens_tp4",
             divisible(with_vocabulary(llama(), 5)),
             DType::f64,
             {.tp = 4},
             "sequential",
             true},
        Case{"gpt_tied_a_rank_without_tokens_tp4",
             divisible(with_vocabulary(gpt(), 5)),
             DType::f64,
             {.tp = 4},
             "sequential"},
        Case{"moe_tp2_ep2", divisible(moe()), DType::f64, {.tp = 2, .ep = 2}, "overlapped"},
        Case{"moe_tp4", divisible(moe()), DType::f64, {.tp = 4}, "sequential"},
        Case{"moe_dp2_tp2_ep4_sequence",
             divisible(moe()),
             DType::f64,
             {.dp = 2, .tp = 2, .ep = 4},
             "overlapped",
             true},
        Case{"sigmoid_dp2_tp2_ep2",
             divisible(sigmoid_moe_with_dropout()),
             DType::f64,
             {.dp = 2, .tp = 2, .ep = 2},
             "sequential"},
        Case{"gpt_cp2", divisible(gpt()), DType::f64, {.cp = 2}, "sequential"},
        Case{"gpt_dropout_dp2_cp2",
             divisible(with_dropout(gpt())),
             DType::f64,
             {.dp = 2, .cp = 2},
             "overlapped"},
        Case{"llama_shared_kv_heads_cp4", divisible(llama()), DType::f64, {.cp = 4}, "overlapped"},
        Case{
            "llama_cp2_tp2_sequence", divisible(llama()), DType::f64, {.cp = 2, .tp = 2}, "sequential", true},
        Case{
            "gpt_within_a_sequence_dp2_cp4", six_tokens(gpt()), DType::f64, {.dp = 2, .cp = 4}, "overlapped"},
        Case{"moe_within_a_sequence_dp4_cp2_ep4",
             six_tokens(moe()),
             DType::f64,
             {.dp = 4, .cp = 2, .ep = 4},
             "overlapped"},
        Case{"sigmoid_within_a_sequence_dp2_cp2_tp2_ep4",
             six_tokens(sigmoid_moe_with_dropout()),
             DType::f64,
             {.dp = 2, .cp = 2, .tp = 2, .ep = 4},
             "overlapped",
             true},
        Case{"moe_dp2_etp2", divisible(moe()), DType::f64, {.dp = 2, .etp = 2}, "overlapped"},
        Case{"moe_tp4_ep2_etp2",
             divisible(moe()),
             DType::f64,
             {.tp = 4, .ep = 2, .etp = 2},
             "sequential",
             true},
        Case{"moe_dp2_tp2_etp4", divisible(moe()), DType::f64, {.dp = 2, .tp = 2, .etp = 4}, "overlapped"},
        Case{"sigmoid_within_a_sequence_dp2_cp2_tp2_ep2_etp2",
             six_tokens(sigmoid_moe_with_dropout()),
             DType::f64,
             {.dp = 2, .cp = 2, .tp = 2, .ep = 2, .etp = 2},
             "overlapped"},
        Case{"gpt_ring_cp2", gpt(), DType::f64, {.cp = 2}, "overlapped"},
        Case{"gpt_drop_ring_cp4",
             six_tokens(with_dropout(gpt())),
             DType::f64,
             {.cp = 4},
             "overlapped",
             false,
             1},
        Case{"gpt_dp2_ring_cp4", six_tokens(gpt()), DType::f64, {.dp = 2, .cp = 4}, "sequential", false, 1},
        Case{"llama_ring_cp2_tp2", divisible(llama()), DType::f64, {.cp = 2, .tp = 2}, "overlapped", true, 1},
        Case{"llama_shared_kv_heads_usp_cp4",
             with_one_kv_head(six_tokens(llama())),
             DType::f64,
             {.cp = 4},
             "overlapped",
             false,
             2},
        Case{"moe_uneven_chunks_dp4_ring_cp2_ep4",
             six_tokens(moe()),
             DType::f64,
             {.dp = 4, .cp = 2, .ep = 4},
             "overlapped",
             false,
             1},
        Case{"sigmoid_dp2_ring_cp2_tp2_ep4",
             six_tokens(sigmoid_moe_with_dropout()),
             DType::f64,
             {.dp = 2, .cp = 2, .tp = 2, .ep = 4},
             "overlapped",
             true,
             1},
        Case{"moe_usp_cp4_ep2", divisible(moe()), DType::f64, {.cp = 4, .ep = 2}, "overlapped", false, 2},
        Case{"moe_cp2_tp2_ep4", divisible(moe()), DType::f64, {.cp = 2, .tp = 2, .ep = 4}, "overlapped"},
        Case{"sigmoid_cp4_ep2",
             divisible(sigmoid_moe_with_dropout()),
             DType::f64,
             {.cp = 4, .ep = 2},
             "overlapped"},
        Case{"gpt_tied_sequential_pp2", divisible(gpt()), DType::f64, {.pp = 2}, "sequential"},
        Case{"gpt_dropout_1f1b_pp2_dp2", with_dropout(gpt()), DType::f64, {.pp = 2, .dp = 2}, "1f1b"},
        Case{"gpt_tied_gpipe_pp2_tp2", divisible(gpt()), DType::f64, {.pp = 2, .tp = 2}, "gpipe"},
        Case{"llama_zb_h1_pp2_cp2", divisible(llama()), DType::f64, {.pp = 2, .cp = 2}, "zb-h1"},
        Case{"moe_uneven_1f1b_pp2_dp2_ep2", moe(), DType::f64, {.pp = 2, .dp = 2, .ep = 2}, "1f1b"},
        Case{"mla_tp2", divisible(mla()), DType::f64, {.tp = 2}, "sequential"},
        Case{"mla_tp4_sequence", divisible(mla()), DType::f64, {.tp = 4}, "overlapped", true},
        Case{
            "mla_within_a_sequence_dp2_cp4", six_tokens(mla()), DType::f64, {.dp = 2, .cp = 4}, "overlapped"},
        Case{"mla_uneven_chunks_ring_cp4", six_tokens(mla()), DType::f64, {.cp = 4}, "overlapped", false, 1},
        Case{"mla_usp_cp4_tp2_sequence",
             six_tokens(mla()),
             DType::f64,
             {.cp = 4, .tp = 2},
             "sequential",
             true,
             2},
        Case{"mla_1f1b_pp2_ring_cp2", divisible(mla()), DType::f64, {.pp = 2, .cp = 2}, "1f1b", false, 1},
        Case{"gpt_mtp_pp2", with_mtp(divisible(gpt())), DType::f64, {.pp = 2}, "1f1b"},
        Case{"llama_mtp_tp4_sequence",
             with_mtp(divisible(llama())),
             DType::f64,
             {.tp = 4},
             "overlapped",
             true},
        Case{"llama_mtp_tokens_tp4",
             with_mtp(divisible(with_vocabulary(llama(), 5))),
             DType::f64,
             {.tp = 4},
             "sequential"},
        Case{"moe_mtp_dp2_ring_cp4_ep4",
             with_mtp(six_tokens(moe())),
             DType::f64,
             {.dp = 2, .cp = 4, .ep = 4},
             "overlapped",
             false,
             1},
        Case{"sigmoid_mtp_zb_h1_pp2_cp2_tp2_ep2_etp2",
             with_mtp(six_tokens(sigmoid_moe_with_dropout())),
             DType::f64,
             {.pp = 2, .cp = 2, .tp = 2, .ep = 2, .etp = 2},
             "zb-h1",
             true},
        Case{"mla_mtp_usp_cp4_tp2_sequence",
             with_mtp(six_tokens(mla())),
             DType::f64,
             {.cp = 4, .tp = 2},
             "sequential",
             true,
             2},
        Case{"gpt_f32_dp2", gpt(), DType::f32, {.dp = 2}, "overlapped"},
        Case{"llama_f32_tp4_sequence", divisible(llama()), DType::f32, {.tp = 4}, "sequential", true},
        Case{"llama_f32_dp4", llama(), DType::f32, {.dp = 4}, "sequential"}),
    [](const auto& info) { return info.param.name; });

// Sequences of two documents, cut again into slices; of seven tokens into slices of one.
INSTANTIATE_TEST_SUITE_P(
    Slices, StepTest,
    testing::Values(
        Case{"gpt_dropout", with_dropout(gpt()), DType::f64, {}, "sequential", false, 0, 7},
        Case{"llama_dp2_overlapped", six_tokens(llama()), DType::f64, {.dp = 2}, "overlapped", false, 0, 3},
        Case{"mla_tp2_sequence", six_tokens(mla()), DType::f64, {.tp = 2}, "sequential", true, 0, 3},
        Case{"mla_ring_cp2", six_tokens(mla()), DType::f64, {.cp = 2}, "overlapped", false, 1, 2},
        Case{"llama_usp_cp4",
             with_one_kv_head(six_tokens(llama())),
             DType::f64,
             {.cp = 4},
             "sequential",
             false,
             2,
             2},
        Case{"gpt_cp2_tp2_sequence", six_tokens(gpt()), DType::f64, {.cp = 2, .tp = 2}, "gpipe", true, 2, 3},
        Case{"gpt_1f1b_pp2_ring_cp4",
             six_tokens(with_dropout(gpt())),
             DType::f64,
             {.pp = 2, .cp = 4},
             "1f1b",
             false,
             1,
             3},
        Case{"gpt_zb_h1_pp2_tp2", six_tokens(gpt()), DType::f64, {.pp = 2, .tp = 2}, "zb-h1", false, 0, 6},
        Case{"moe_1f1b_pp2_dp2_ep2",
             with_every_routing_loss(moe()),
             DType::f64,
             {.pp = 2, .dp = 2, .ep = 2},
             "1f1b",
             false,
             0,
             7},
        Case{"sigmoid_cp2_tp2_ep4",
             with_every_routing_loss(six_tokens(sigmoid_moe_with_dropout())),
             DType::f64,
             {.cp = 2, .tp = 2, .ep = 4},
             "overlapped",
             true,
             1,
             3}),
    [](const auto& info) { return info.param.name; });

TEST(Step, ANonFiniteGradientStopsEveryRankAndNamesTheTensor) {
  try {
    run_thread_ranks({.ranks = 2}, [&](Group& world) {
      Rank rank(world, {.dp = 2}, gpt(), DType::f32, "sequential", 1);
      const std::vector<Batch> micro = batches(rank.mesh, rank.model.context_share(), gpt(), 1);
      for (Parameter& p : rank.store.all()) {
        if (p.name() == "layers.1.mlp.up.w") p.value().span<float>()[3] = std::nanf("");
      }
      train_step(rank.trainer, micro, 1e-2, 120);
    });
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("step 120"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("layers.1.mlp.up.w"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace phalanx
