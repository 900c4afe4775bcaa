// Weights that are kept in bf16 beside a master copy, and an optimizer whose state lies in a file.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/hf_weights.h"
#include "phalanx/ops/cast.h"
#include "phalanx/train/rank_run.h"
#include "phalanx/train/verify.h"
#include "tests/temporary_directory.h"
#include "tests/train/small_runs.h"

namespace phalanx {
namespace {

std::vector<Batch> batches_of(RankRun& rank, const Dataset& data, int64_t step) {
  return data.train_batches(step, rank.share());
}

TrainConfig narrow(TrainConfig config) {
  config.train.weights = KeptWeights::bf16;
  return config;
}

using Vectors = std::map<std::string, std::vector<float>>;

// Of one rank: its part of every parameter, value or gradient.
Vectors values_of(RankRun& rank, bool grads) {
  Vectors all;
  for (const Parameter& p : rank.parameters().all()) {
    const Tensor own = grads ? rank.parameters().own_grad(p) : rank.parameters().own_value(p);
    all[p.name()].assign(own.span<float>().begin(), own.span<float>().end());
  }
  return all;
}

// The oracle: a store that keeps its weights wide, rounded once.
TEST(NarrowWeights, ComputeWithTheRoundedOnes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const TrainConfig config = small_moe({}, "sequential");
  const Dataset data = random_text(config, seed);
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    RankRun rank(narrow(config), data.tokenizer().vocabulary(), world);
    RankRun oracle(config, data.tokenizer().vocabulary(), world);
    EXPECT_EQ(values_of(rank, false), values_of(oracle, false));  // the master copy is not rounded
    for (const Parameter& p : oracle.parameters().all()) {
      const Tensor rounded = Tensor::empty(p.value().shape(), DType::bf16);
      narrow_into(rounded, p.value());
      widen_into(p.value(), rounded);
    }
    const StepResult got = compute_gradients(rank.trainer(), batches_of(rank, data, 0), 0);
    const StepResult want = compute_gradients(oracle.trainer(), batches_of(oracle, data, 0), 0);
    EXPECT_EQ(got.loss, want.loss);
    EXPECT_EQ(values_of(rank, true), values_of(oracle, true));
  });
}

// Changes below what bf16 can tell apart add up in the master copy, until it tells.
TEST(NarrowWeights, SmallUpdatesAreNotLost) {
  const TrainConfig config = narrow(small_gpt({.dp = 2}, "sequential"));
  const Dataset data = random_text(config, std::random_device{}());
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    const Vectors before = values_of(rank, false);
    for (int64_t s = 0; s < 3; ++s) {
      train_step(rank.trainer(), batches_of(rank, data, s), 1e-6, static_cast<uint64_t>(s));
    }
    const Vectors after = values_of(rank, false);
    for (const auto& [name, was] : before) {
      if (was.empty()) continue;
      EXPECT_NE(after.at(name), was) << name;
      float most = 0;
      for (size_t i = 0; i < was.size(); ++i) most = std::max(most, std::abs(after.at(name)[i] - was[i]));
      EXPECT_LT(most, 1e-5F) << name;
    }
  });
}

TEST(NarrowWeights, EveryLayoutGivesOneRanksAnswer) {
  ModelConfig model = small_moe({}, "sequential").model;
  model.vocabulary = 23;
  model.context = 8;
  std::vector<VerifyCase> cases;
  const Layout layouts[] = {{.dp = 4}, {.dp = 2, .tp = 2, .ep = 2}, {.pp = 2, .dp = 2}, {.cp = 2, .tp = 2}};
  for (const Layout& layout : layouts) {
    for (const Zero zero : {Zero::none, Zero::optimizer, Zero::gradients, Zero::weights}) {
      cases.push_back({.layout = layout,
                       .schedule = layout.pp > 1 ? "zb-h1" : "overlapped",
                       .sequence = layout.tp > 1,
                       .zero = zero});
    }
  }
  const auto check = [](const VerifyRow& row) {
    EXPECT_TRUE(row.pass) << row.run.layout.text() << " " << row.run.schedule << " zero "
                          << static_cast<int>(row.run.zero) << ": " << row.error << " " << row.worst_tensor
                          << " " << row.max_rel_grad_err << " " << row.weights_err;
  };
  ASSERT_EQ(cases.size(), 16u);
  verify({.model = resolved(model), .narrow = true, .seed = std::random_device{}()}, cases, check);
}

TrainConfig without_master(TrainConfig config) {
  config = narrow(std::move(config));
  config.optimizer.master = OptimizerConfig::Master::none;
  return config;
}

// Neither a wide copy nor a change that bf16 cannot tell apart: a small update moves some weights by a unit
// of their last place, and the others not at all.
TEST(WithoutMaster, SmallUpdatesMoveAFewWeights) {
  const TrainConfig config = without_master(small_gpt({.dp = 2}, "sequential"));
  const Dataset data = random_text(config, std::random_device{}());
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    const auto bits = [&] {
      std::vector<uint16_t> all;
      for (const Parameter& p : rank.parameters().all()) {
        for (const bf16 v : rank.parameters().own_value(p).span<const bf16>()) all.push_back(v.bits);
      }
      return all;
    };
    const std::vector<uint16_t> before = bits();
    for (int64_t s = 0; s < 3; ++s) {
      train_step(rank.trainer(), batches_of(rank, data, s), 1e-6, static_cast<uint64_t>(s));
    }
    const std::vector<uint16_t> after = bits();
    size_t moved = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      const int difference = std::abs(static_cast<int>(after[i]) - static_cast<int>(before[i]));
      if (difference == 0) continue;
      ++moved;
      if (std::abs(bf16{before[i]}.to_float()) > 1e-3F) {
        EXPECT_LE(difference, 3) << i;  // one a step
      }
    }
    EXPECT_GT(moved, 0u);
    EXPECT_LT(moved, before.size() / 5);
  });
}

// A gradient that is a function of where its element stands gives every layout the same bits: what is drawn
// depends on that place alone.
TEST(WithoutMaster, EveryLayoutRoundsAlike) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  using Bits = std::map<std::string, std::vector<int>>;
  const auto rounded = [&](const Layout& layout, int zero) {
    TrainConfig config = without_master(small_moe(layout, layout.pp > 1 ? "1f1b" : "sequential"));
    config.parallel.zero = zero;
    const Dataset data = random_text(config, seed);
    Bits all;
    std::mutex mutex;
    run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
      RankRun rank(config, data.tokenizer().vocabulary(), world);
      ParameterStore& store = rank.parameters();
      compute_gradients(rank.trainer(), batches_of(rank, data, 0), 0);
      run(rank.model().data().reduce_grads());
      for (const Parameter& p : store.all()) {
        const int64_t first = store.share_of(p).begin;
        const std::span<float> grad = store.own_grad(p).span<float>();
        for (size_t i = 0; i < grad.size(); ++i) {
          const int64_t index = p.slice().global_index(first + static_cast<int64_t>(i));
          grad[i] = static_cast<float>(index % 7 - 3) * 0.1F;
        }
      }
      rank.optimizer().step(1e-3, 1);
      const std::lock_guard lock(mutex);
      for (const Parameter& p : store.all()) {
        std::vector<int>& out = all[p.name()];
        out.resize(static_cast<size_t>(p.slice().full.numel()));
        const int64_t first = store.share_of(p).begin;
        const std::span<const bf16> own = store.own_value(p).span<const bf16>();
        for (size_t i = 0; i < own.size(); ++i) {
          out[static_cast<size_t>(p.slice().global_index(first + static_cast<int64_t>(i)))] = own[i].bits;
        }
      }
    });
    return all;
  };
  const Bits want = rounded({}, 0);
  for (const auto& [layout, zero] : {std::pair{Layout{.dp = 2}, 1},
                                     {Layout{.tp = 2}, 0},
                                     {Layout{.dp = 2, .tp = 2, .ep = 2, .etp = 2}, 0},
                                     {Layout{.dp = 4, .ep = 2}, 3},
                                     {Layout{.pp = 2, .dp = 2}, 2}}) {
    const Bits got = rounded(layout, zero);
    for (const auto& [name, bits] : want) EXPECT_EQ(got.at(name), bits) << name << " " << layout.text();
  }
}

TEST(WithoutMaster, AModelToStartFromIsRounded) {
  const testing::TemporaryDirectory dir;
  TrainConfig config = small_gpt({}, "sequential");
  const Dataset data = random_text(config, 1);
  const int64_t vocabulary = data.tokenizer().vocabulary();
  for (const int zero : {0, 3}) {
    const auto model = dir.path() / std::to_string(zero);
    run_thread_ranks({.ranks = 1}, [&](Group& world) {
      RankRun given(config, vocabulary, world);
      save_hf_model(given.parameters(), given.model().config(), model);
      TrainConfig other = without_master(config);
      other.parallel.zero = zero;
      other.train.seed = config.train.seed + 1;
      RankRun rank(other, vocabulary, world);
      load_hf_weights(rank.parameters(), rank.model().config(), model);
      for (const Parameter& p : given.parameters().all()) {
        const auto want = p.value().span<float>();
        const auto& same = *std::ranges::find(rank.parameters().all(), p.name(), &Parameter::name);
        const auto got = rank.parameters().own_value(same).span<const bf16>();
        ASSERT_EQ(got.size(), want.size());
        for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i].bits, bf16::from(want[i]).bits) << p.name();
      }
    });
  }
}

// What is gathered is bf16, what is summed is not.
TEST(NarrowWeights, SendHalfAsManyBytes) {
  const TrainConfig wide = small_llama({.dp = 2}, "sequential");
  const Dataset data = random_text(wide, 1);
  for (const int zero : {1, 2, 3}) {
    std::array<int64_t, 2> gathered{};
    std::array<int64_t, 2> summed{};
    for (const bool is_narrow : {false, true}) {
      TrainConfig config = is_narrow ? narrow(wide) : wide;
      config.parallel.zero = zero;
      run_thread_ranks({.ranks = 2}, [&](Group& world) {
        RankRun rank(config, data.tokenizer().vocabulary(), world);
        const std::vector<Batch> batches = batches_of(rank, data, 0);
        const int64_t begin = rank.mesh().traffic().sent;
        evaluate(rank.trainer(), batches);
        const int64_t evaluated = rank.mesh().traffic().sent;
        run(rank.model().data().publish_values());
        const int64_t published = rank.mesh().traffic().sent;
        run(rank.model().data().reduce_grads());
        if (world.rank() != 0) return;
        gathered[is_narrow ? 1 : 0] = (zero == 3 ? evaluated - begin : published - evaluated);
        summed[is_narrow ? 1 : 0] = rank.mesh().traffic().sent - published;
      });
    }
    const int64_t scalars = zero == 3 ? 2 * 8 : 0;  // the evaluation's two sums
    EXPECT_EQ(gathered[0] - scalars, 2 * (gathered[1] - scalars)) << "stage " << zero;
    EXPECT_GT(gathered[0], 0);
    EXPECT_EQ(summed[0], summed[1]);
    EXPECT_GT(summed[0], 0);
  }
}

// Whether the state lies in memory or in a file, the bits are the same.
TEST(Offload, ChangesNoBit) {
  const testing::TemporaryDirectory dir;
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const int zero : {0, 1, 3}) {
    for (const bool is_narrow : {false, true}) {
      TrainConfig config = small_moe({.dp = 2, .ep = 2}, "sequential");
      if (is_narrow) config = narrow(config);
      config.parallel.zero = zero;
      const Dataset data = random_text(config, seed);
      std::array<std::array<Vectors, 2>, 2> weights;  // by rank
      std::array<std::array<size_t, 2>, 2> peak{};
      int64_t share_bytes = 0;
      for (const bool in_file : {false, true}) {
        config.optimizer.offload = in_file ? dir.path().string() : "";
        run_thread_ranks({.ranks = 2}, [&](Group& world) {
          RankRun rank(config, data.tokenizer().vocabulary(), world);
          for (int64_t s = 0; s < 3; ++s) {
            train_step(rank.trainer(), batches_of(rank, data, s), 1e-2, static_cast<uint64_t>(s));
          }
          const auto r = static_cast<size_t>(world.rank());
          weights[r][in_file ? 1 : 0] = values_of(rank, false);
          peak[r][in_file ? 1 : 0] = cpu_allocator().stats().peak;
          if (r == 0) share_bytes = 4 * rank.parameters().share_elements();
        });
      }
      for (const size_t r : {0, 1}) EXPECT_EQ(weights[r][0], weights[r][1]);
      const int64_t saved = static_cast<int64_t>(peak[0][0]) - static_cast<int64_t>(peak[0][1]);
      EXPECT_GE(saved, (is_narrow ? 3 : 2) * share_bytes);
    }
  }
}

}  // namespace
}  // namespace phalanx
