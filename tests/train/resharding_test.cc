// A run saved under one layout goes on under any other: weights, routers' biases and optimizer state have the
// same bits, and with ZeRO the same updates.
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ops/cast.h"
#include "phalanx/train/resume.h"
#include "tests/temporary_directory.h"
#include "tests/train/small_runs.h"

namespace phalanx {
namespace {

using FullTensors = std::map<std::string, std::vector<float>>;

struct Run {
  const char* name;
  TrainConfig (*config)(const Layout&, const char*);
  Layout layout;
  int zero = 0;
  const char* schedule = "sequential";
  bool narrow = false;
  OptimizerConfig::Moments moments = OptimizerConfig::Moments::same;
  OptimizerConfig::Master master = OptimizerConfig::Master::same;
};

TrainConfig config_of(const Run& run, const std::string& out) {
  TrainConfig c = run.config(run.layout, run.schedule);
  c.parallel.zero = run.zero;
  c.train.out = out;
  c.model.moe.bias_rate = 0.01;
  if (run.narrow) c.train.weights = KeptWeights::bf16;
  c.optimizer.moments = run.moments;
  c.optimizer.master = run.master;
  return c;
}

void place(FullTensors& full, const std::string& name, const Parameter& p, FlatRange range,
           const Tensor& values) {
  std::vector<float>& out = full[name];
  out.resize(static_cast<size_t>(p.slice().full.numel()));
  const bool narrow = values.dtype() == DType::bf16;
  const Tensor wide = narrow ? Tensor::empty(values.shape(), DType::f32) : values;
  if (narrow) widen_into(wide, values);
  const auto from = wide.span<float>();
  for (int64_t i = range.begin; i < range.end; ++i) {
    out[static_cast<size_t>(p.slice().global_index(i))] = from[static_cast<size_t>(i - range.begin)];
  }
}

// Weights and moments of all ranks, whole.
void collect(FullTensors& full, RankRun& rank) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  for (const Parameter& p : rank.parameters().all()) {
    const FlatRange own = rank.parameters().share_of(p);
    place(full, p.name(), p, own, rank.parameters().own_value(p));
    place(full, "m." + p.name(), p, own, rank.optimizer().first_moments(p));
    place(full, "v." + p.name(), p, own, rank.optimizer().second_moments(p));
  }
  for (const State& s : rank.parameters().states()) {
    full[s.name].assign(s.value.span<float>().begin(), s.value.span<float>().end());
  }
}

void step(RankRun& rank, const Dataset& data, int64_t number) {
  const std::vector<Batch> batches = data.train_batches(number, rank.share());
  train_step(rank.trainer(), batches, 1e-2, static_cast<uint64_t>(number));
}

constexpr auto kNarrowMoments = OptimizerConfig::Moments::bf16;

Run without_master(const char* name, TrainConfig (*config)(const Layout&, const char*), const Layout& layout,
                   int zero) {
  return {.name = name,
          .config = config,
          .layout = layout,
          .zero = zero,
          .narrow = true,
          .master = OptimizerConfig::Master::none};
}

class Resharding : public ::testing::TestWithParam<std::pair<Run, Run>> {};

TEST_P(Resharding, KeepsEveryBit) {
  const auto& [saving, loading] = GetParam();
  const testing::TemporaryDirectory dir;
  const TrainConfig config = config_of(saving, dir.path().string());
  const Dataset data = random_text(config, std::random_device{}());
  const int64_t vocabulary = data.tokenizer().vocabulary();
  FullTensors saved;
  FullTensors loaded;
  run_thread_ranks({.ranks = saving.layout.ranks()}, [&](Group& world) {
    RankRun rank(config, vocabulary, world);
    for (int64_t s = 0; s < 2; ++s) step(rank, data, s);
    for (const State& s : rank.parameters().states()) s.value.span<float>()[5] += 0.3F;  // not 0 again
    save_run(rank, data.tokenizer(), 2, world);
    collect(saved, rank);
  });
  run_thread_ranks({.ranks = loading.layout.ranks()}, [&](Group& world) {
    RankRun rank(config_of(loading, dir.path().string()), vocabulary, world);
    const Resumed resumed = resume_run(rank, data.tokenizer(), dir.path().string(), world);
    EXPECT_EQ(resumed.next_step, 2);
    collect(loaded, rank);
    step(rank, data, 2);  // and it goes on
  });
  ASSERT_EQ(saved.size(), loaded.size());
  for (const auto& [name, values] : saved) EXPECT_EQ(loaded.at(name), values) << name;
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, Resharding,
    ::testing::Values(
        std::pair{Run{"one", small_gpt, {}}, Run{"tp4", small_gpt, {.tp = 4}}},
        std::pair{Run{"dp2_tp2_zero1", small_gpt, {.dp = 2, .tp = 2}, 1}, Run{"one", small_gpt, {}}},
        std::pair{Run{"dp4_zero1", small_llama, {.dp = 4}, 1}, Run{"dp2_zero1", small_llama, {.dp = 2}, 1}},
        std::pair{Run{"tp4", small_llama, {.tp = 4}},
                  Run{"dp2_tp2_zero1", small_llama, {.dp = 2, .tp = 2}, 1}},
        std::pair{Run{"moe_dp4_ep2_zero1", small_moe, {.dp = 4, .ep = 2}, 1},
                  Run{"dp2_tp2_ep4", small_moe, {.dp = 2, .tp = 2, .ep = 4}}},
        std::pair{Run{"pp2_dualpipe", small_gpt, {.pp = 2}, 0, "dualpipe"}, Run{"one", small_gpt, {}}},
        std::pair{Run{"one", small_gpt, {}}, Run{"pp2_tp2_zb_v", small_gpt, {.pp = 2, .tp = 2}, 0, "zb-v"}},
        std::pair{Run{"dp2_tp2_zero3", small_llama, {.dp = 2, .tp = 2}, 3}, Run{"one", small_llama, {}}},
        std::pair{Run{"pp2_dp2_zero2", small_gpt, {.pp = 2, .dp = 2}, 2, "1f1b"},
                  Run{"dp4_zero3", small_gpt, {.dp = 4}, 3}},
        std::pair{Run{"moe_dp4_ep2", small_moe, {.dp = 4, .ep = 2}},
                  Run{"pp2_dp2_ep2_zero3", small_moe, {.pp = 2, .dp = 2, .ep = 2}, 3, "zb-h1"}},
        std::pair{Run{"moe_dp4_ep2_etp2_zero1", small_moe, {.dp = 4, .ep = 2, .etp = 2}, 1},
                  Run{"tp2_etp2", small_moe, {.tp = 2, .etp = 2}}},
        // The master copy is saved: not what bf16 has left of it.
        std::pair{Run{"bf16_dp2_zero3", small_gpt, {.dp = 2}, 3, "sequential", true},
                  Run{"bf16_tp2", small_gpt, {.tp = 2}, 0, "sequential", true}},
        std::pair{Run{"bf16_moe_dp4_ep2_zero1", small_moe, {.dp = 4, .ep = 2}, 1, "sequential", true},
                  Run{"one", small_moe, {}}},
        std::pair{Run{"bf16_moments_moe_dp4_ep2_zero3",
                      small_moe,
                      {.dp = 4, .ep = 2},
                      3,
                      "sequential",
                      true,
                      kNarrowMoments},
                  Run{"pp2_tp2", small_moe, {.pp = 2, .tp = 2}, 0, "1f1b", false, kNarrowMoments}},
        std::pair{without_master("no_master_dp2_tp2_zero3", small_gpt, {.dp = 2, .tp = 2}, 3),
                  without_master("no_master_dp2", small_gpt, {.dp = 2}, 0)},
        std::pair{without_master("no_master_moe_dp4_ep2", small_moe, {.dp = 4, .ep = 2}, 0),
                  without_master("no_master_tp2_ep2_zero1", small_moe, {.tp = 2, .ep = 2}, 1)},
        // What bf16 has is exact in f32, too.
        std::pair{without_master("no_master_moe_dp2", small_moe, {.dp = 2}, 0), Run{"one", small_moe, {}}},
        std::pair{Run{"mtp_pp2_tp2_ep2_zero3", small_mtp, {.pp = 2, .tp = 2, .ep = 2}, 3, "1f1b"},
                  Run{"dp2_cp2_ep4", small_mtp, {.dp = 2, .cp = 2, .ep = 4}}},
        std::pair{Run{"mtp_dp2_ep2", small_mtp, {.dp = 2, .ep = 2}},
                  Run{"pp2_dualpipe_zero2", small_mtp, {.pp = 2}, 2, "dualpipe"}},
        std::pair{Run{"moe_tp2_ep2", small_moe, {.tp = 2, .ep = 2}},
                  Run{"dp4_ep2_zero1", small_moe, {.dp = 4, .ep = 2}, 1}}),
    [](const auto& info) { return std::string(info.param.first.name) + "_to_" + info.param.second.name; });

TrainConfig narrow_moments(TrainConfig (*config)(const Layout&, const char*), const Layout& layout,
                           const std::string& out) {
  return config_of({"", config, layout, 1, "sequential", true, kNarrowMoments}, out);
}

// The run that saved and one that stops between and resumes end with the same bits.
TEST(NarrowMoments, ResumeExactly) {
  const testing::TemporaryDirectory dir;
  const TrainConfig config = narrow_moments(small_llama, {.dp = 2}, dir.path().string());
  const Dataset data = random_text(config, std::random_device{}());
  const int64_t vocabulary = data.tokenizer().vocabulary();
  FullTensors straight;
  FullTensors resumed;
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    RankRun rank(config, vocabulary, world);
    for (int64_t s = 0; s < 3; ++s) {
      step(rank, data, s);
      if (s == 1) save_run(rank, data.tokenizer(), 2, world);
    }
    collect(straight, rank);
  });
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    RankRun rank(config, vocabulary, world);
    resume_run(rank, data.tokenizer(), dir.path().string(), world);
    step(rank, data, 2);
    collect(resumed, rank);
  });
  EXPECT_EQ(straight, resumed);
}

// What a run with those changes is told that resumes one without.
std::string refusal(void (*change)(OptimizerConfig&)) {
  const testing::TemporaryDirectory dir;
  TrainConfig config = narrow_moments(small_gpt, {}, dir.path().string());
  const Dataset data = random_text(config, std::random_device{}());
  std::string told;
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    save_run(rank, data.tokenizer(), 0, world);
    change(config.optimizer);
    RankRun other(config, data.tokenizer().vocabulary(), world);
    try {
      resume_run(other, data.tokenizer(), dir.path().string(), world);
    } catch (const Error& e) {
      told = e.what();
    }
  });
  return told;
}

TEST(NarrowMoments, AreNotLoadedAsOthers) {
  const std::string told = refusal([](OptimizerConfig& c) { c.moments = OptimizerConfig::Moments::same; });
  EXPECT_NE(told.find("set optimizer.moments=bf16"), std::string::npos) << told;
}

TEST(WithoutMaster, IsNotResumedFromAMasterCopy) {
  const std::string told = refusal([](OptimizerConfig& c) { c.master = OptimizerConfig::Master::none; });
  EXPECT_NE(told.find("set optimizer.master=same"), std::string::npos) << told;
}

// Sums run in rank order in both kinds of collective, and the update is element by element.
TEST(ZeroOne, UpdatesToTheSameBits) {
  const unsigned seed = std::random_device{}();
  for (const auto& [config, layout] : {std::pair{&small_llama, Layout{.dp = 3}},
                                       {&small_gpt, Layout{.dp = 2, .tp = 2}},
                                       {&small_moe, Layout{.dp = 4, .ep = 2}}}) {
    FullTensors results[2];
    for (const int zero : {0, 1}) {
      TrainConfig c = config({}, "sequential");
      c.train.batch = 12;
      c.train.microbatch = 1;
      c.parallel = {.ranks = layout.ranks(), .layout = layout.text(), .zero = zero};
      const Dataset data = random_text(c, seed);
      run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
        RankRun rank(c, data.tokenizer().vocabulary(), world);
        for (int64_t s = 0; s < 3; ++s) step(rank, data, s);
        collect(results[zero], rank);
      });
    }
    for (const auto& [name, values] : results[0]) EXPECT_EQ(results[1].at(name), values) << name;
  }
}

// A step without tensor or expert parallelism sends the gradients' shares and the weights' shares, as an
// all_reduce would, and a few numbers.
TEST(Zero, MovesTheBytesOfTheHeader) {
  const Layout layout = {.dp = 4};
  const TrainConfig base = small_llama(layout, "sequential");
  const Dataset data = random_text(base, 1);
  const auto microbatches = static_cast<double>(base.train.batch / base.train.microbatch / 4);
  for (const int zero : {0, 1, 2, 3}) {
    TrainConfig c = base;
    c.parallel.zero = zero;
    run_thread_ranks({.ranks = 4}, [&](Group& world) {
      RankRun rank(c, data.tokenizer().vocabulary(), world);
      step(rank, data, 0);
      const int64_t before = rank.mesh().traffic().sent - world.traffic().sent;
      step(rank, data, 1);
      const int64_t sent = rank.mesh().traffic().sent - world.traffic().sent - before;
      double shares = 0;  // sent whenever all are scattered, or gathered
      for (const Bucket& b : rank.parameters().buckets()) {
        const auto bytes = static_cast<double>(3 * (b.elements + 3) / 4 * 4);
        shares += bytes;
      }
      // The embedding is looked up once a microbatch, and only summed in backward.
      const double embedding =
          static_cast<double>(3 * rank.parameters().bucket_of(rank.parameters().all().front()).elements);
      const double gathered = zero == 3 ? microbatches * (2 * shares - embedding) : shares;
      const double scattered = zero >= 2 ? microbatches * shares : shares;
      EXPECT_NEAR(static_cast<double>(sent), gathered + scattered, 256) << zero;
    });
  }
}

}  // namespace
}  // namespace phalanx
