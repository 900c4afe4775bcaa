// The timeline of a traced step: whole, in order, nested, and true to the counters.
#include "phalanx/train/step_trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "phalanx/base/chrome_trace.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/rank_run.h"
#include "tests/train/small_runs.h"

namespace phalanx {
namespace {

using Json = nlohmann::json;

struct Case {
  const char* name;
  TrainConfig (*config)(const Layout&, const char*);
  Layout layout;
  const char* schedule;
  int zero = 0;
  Recompute recompute = Recompute::none;
};

// What the second of two steps left.
struct Traced {
  Json events;
  std::vector<Traffic> traffic;  // by rank
  std::vector<Steps> steps;      // by rank, of its schedule
  std::vector<std::set<int>> layers;
  int microbatches = 0;
};

Traced traced(const Case& c, unsigned seed) {
  TrainConfig config = c.config(c.layout, "");
  config.train.schedule = c.schedule;
  config.parallel.zero = c.zero;
  config.train.recompute.what = c.recompute;
  config.train.microbatch = 1;
  config = checked(config);
  const Dataset data = random_text(config, seed);
  Traced out;
  const auto ranks = static_cast<size_t>(config.parallel.ranks);
  out.traffic.resize(ranks);
  out.steps.resize(ranks);
  out.layers.resize(ranks);
  run_thread_ranks({.ranks = config.parallel.ranks}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    StepTrace trace({.first = 1, .count = 1}, 0);
    const auto r = static_cast<size_t>(world.rank());
    for (int64_t s = 0; s < 3; ++s) {
      const std::vector<Batch> batches = data.train_batches(s, rank.share());
      const Traffic before = rank.mesh().traffic();
      {
        const StepTrace::Scope scope(trace, s);
        train_step(rank.trainer(), batches, 1e-3, static_cast<uint64_t>(s));
      }
      const Traffic after = rank.mesh().traffic();
      if (s == 1)
        out.traffic[r] = {after.calls - before.calls, after.sent - before.sent,
                          after.received - before.received};
    }
    out.steps[r] = rank.trainer().pipeline.steps();
    for (int c = 0; c < rank.model().chunks(); ++c) {
      const StagePart& part = rank.model().stage(c).part();
      for (int l = part.first_layer; l < part.end_layer; ++l) out.layers[r].insert(l);
    }
    const std::string json = trace.collect(rank.mesh(), world);
    EXPECT_EQ(trace.lost(), 0u);
    EXPECT_EQ(json.empty(), world.rank() != 0);
    if (world.rank() != 0) return;
    out.events = Json::parse(json).at("traceEvents");
    out.microbatches = static_cast<int>(rank.share().microbatches());
  });
  return out;
}

class StepTraceTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE(seed);
    traced_ = traced(GetParam(), seed);
    for (const Json& e : traced_.events) {
      if (e.at("ph") == "X") rows_[e.at("tid").get<int64_t>()].push_back(e);
    }
  }
  int64_t ranks() const { return static_cast<int64_t>(traced_.steps.size()); }
  // Of a rank's row and the one beside.
  std::multiset<std::string> names(int64_t rank) const {
    std::multiset<std::string> out;
    for (const int64_t row : {rank, rank + kChromeRow}) {
      const auto found = rows_.find(row);
      if (found == rows_.end()) continue;
      for (const Json& e : found->second) out.insert(e.at("name").get<std::string>());
    }
    return out;
  }

  Traced traced_;
  std::map<int64_t, std::vector<Json>> rows_;
};

double end_of(const Json& e) { return e.at("ts").get<double>() + e.at("dur").get<double>(); }

TEST_P(StepTraceTest, EveryRankHasOneRowOfItsName) {
  std::map<int64_t, std::string> titles;
  for (const Json& e : traced_.events) {
    EXPECT_EQ(e.at("pid"), 0);
    if (e.at("name") != "thread_name") continue;
    const bool is_new = titles.emplace(e.at("tid"), e.at("args").at("name")).second;
    EXPECT_TRUE(is_new) << e;
  }
  for (int64_t r = 0; r < ranks(); ++r) {
    EXPECT_TRUE(titles[r].starts_with("rank " + std::to_string(r))) << titles[r];
    EXPECT_EQ(titles[r].find(" pp=") != std::string::npos, GetParam().layout.pp > 1) << titles[r];
    EXPECT_EQ(titles[r].find(" dp=") != std::string::npos, GetParam().layout.dp > 1) << titles[r];
  }
  for (const auto& [row, events] : rows_) EXPECT_TRUE(titles.contains(row)) << row;
}

TEST_P(StepTraceTest, SpansOfARowLieWithinEachOtherOrApart) {
  constexpr double kRounding = 0.0011;  // of a microsecond, three decimals
  for (const auto& [row, events] : rows_) {
    std::vector<Json> open;
    for (const Json& e : events) {
      const double begin = e.at("ts");
      ASSERT_GE(begin, 0);
      while (!open.empty() && end_of(open.back()) <= begin + kRounding) open.pop_back();
      if (!open.empty()) {
        ASSERT_LE(end_of(e), end_of(open.back()) + kRounding) << e << " sticks out of " << open.back();
      }
      if (row >= 2 * kChromeRow) {
        ASSERT_TRUE(open.empty()) << e << " overlaps " << open.back();
      }
      open.push_back(e);
    }
  }
}

TEST_P(StepTraceTest, StepsComeInTheOrderOfTheSchedule) {
  for (int64_t r = 0; r < ranks(); ++r) {
    std::vector<std::string> own;
    std::vector<std::string> beside;
    const auto text = [](const char* op, int microbatch, int chunk) {
      return std::string(op) + " m" + std::to_string(microbatch) + " chunk " + std::to_string(chunk);
    };
    for (const Step& s : traced_.steps[static_cast<size_t>(r)]) {
      const bool pair = s.op == StepOp::FB;
      own.push_back(text(pair ? "F" : op_name(s.op).data(), s.microbatch, s.chunk));
      if (pair) beside.push_back(text("B", s.b_microbatch, s.b_chunk));
    }
    const auto seen = [&](int64_t row) {
      std::vector<std::string> out;
      for (const Json& e : rows_[row]) {
        if (e.at("args").contains("op")) out.push_back(e.at("name"));
      }
      return out;
    };
    EXPECT_EQ(seen(r), own) << "rank " << r;
    EXPECT_EQ(seen(r + kChromeRow), beside) << "rank " << r;
  }
}

TEST_P(StepTraceTest, EveryLayerIsThereForEveryMicrobatch) {
  const Case& c = GetParam();
  std::multiset<std::string> all;
  for (int64_t r = 0; r < ranks(); ++r) {
    const std::multiset<std::string> own = names(r);
    for (const int layer : traced_.layers[static_cast<size_t>(r)]) {
      for (int m = 0; m < traced_.microbatches; ++m) {
        const std::string unit = "layers." + std::to_string(layer) + " attention ";
        const auto count = [&](const std::string& phase) {
          return own.count(unit + phase + " m" + std::to_string(m));
        };
        const bool goes_both_ways = std::string_view(c.schedule) == "dualpipe";
        if (goes_both_ways && count("forward") == 0) continue;  // it passes the layer's other copy
        EXPECT_EQ(count("forward"), 1u) << unit << m;
        EXPECT_EQ(count("backward"), 1u) << unit << m;
        EXPECT_GE(count("weight gradient"), 4u) << unit << m;  // q, k, v, o and the norm
        EXPECT_EQ(count("recompute"), c.recompute == Recompute::full ? 1u : 0u) << unit << m;
      }
    }
    all.insert(own.begin(), own.end());
  }
  for (const char* name : {"optimizer", "gradient reduction", "gradient norm"}) {
    EXPECT_EQ(all.count(name), static_cast<size_t>(ranks())) << name;
  }
  for (const char* name : {"embedding forward m0", "embedding backward m0", "head forward m0",
                           "head backward m0", "head weight gradient m0"}) {
    EXPECT_GE(all.count(name), 1u) << name;
  }
}

TEST_P(StepTraceTest, CommunicationSendsWhatTheGroupsCount) {
  for (int64_t r = 0; r < ranks(); ++r) {
    Traffic sum;
    std::set<std::string> names;
    for (const auto& [row, events] : rows_) {
      if (row < 2 * kChromeRow || row % kChromeRow != r) continue;
      for (const Json& e : events) {
        sum += {1, e.at("args").at("sent").get<int64_t>(), e.at("args").at("received").get<int64_t>()};
        EXPECT_LE(e.at("args").at("waited_us").get<double>(), e.at("dur").get<double>() + 0.0011) << e;
        names.insert(e.at("name").get<std::string>());
      }
    }
    EXPECT_EQ(sum, traced_.traffic[static_cast<size_t>(r)]) << "rank " << r;
    const auto has = [&](const std::string& a, const std::string& b) {
      return std::ranges::any_of(
          names, [&](const std::string& n) { return n.starts_with(a) && n.find(b) != n.npos; });
    };
    const int layer = *traced_.layers[static_cast<size_t>(r)].begin();
    const std::string unit = "layers." + std::to_string(layer);
    if (GetParam().zero == 3) {
      EXPECT_TRUE(has("all_gather", unit + " weights m0"));
    }
    if (GetParam().layout.dp > 1) {
      EXPECT_TRUE(has("", unit + " gradients"));
    }
    if (GetParam().layout.ep > 1) {
      EXPECT_TRUE(has("unshare ep", "moe forward m0"));
    }
  }
}

TEST_P(StepTraceTest, EveryMessageGoesFromItsSenderToItsReceiver) {
  std::map<std::string, double> sent;
  for (const Json& e : traced_.events) {
    if (e.at("ph") == "s") {
      EXPECT_TRUE(sent.emplace(e.at("id"), e.at("ts").get<double>()).second) << e;
    }
  }
  size_t received = 0;
  for (const Json& e : traced_.events) {
    if (e.at("ph") != "f") continue;
    ++received;
    ASSERT_TRUE(sent.contains(e.at("id"))) << e;
    EXPECT_LE(sent[e.at("id")], e.at("ts").get<double>()) << e;
  }
  EXPECT_EQ(received, sent.size());
  EXPECT_EQ(received > 0, GetParam().layout.pp > 1);
}

INSTANTIATE_TEST_SUITE_P(
    Runs, StepTraceTest,
    testing::Values(Case{"gpt", small_gpt, {}, "sequential"},
                    Case{"gpt_pp2_zb_h1", small_gpt, {.pp = 2}, "zb-h1"},
                    Case{"llama_pp2_1f1b_recomputed", small_llama, {.pp = 2}, "1f1b", 0, Recompute::full},
                    Case{"moe_pp2_dualpipe_v_ep2", small_moe, {.pp = 2, .dp = 2, .ep = 2}, "dualpipe-v"},
                    Case{"llama_pp2_dualpipe", small_llama, {.pp = 2}, "dualpipe"},
                    Case{"llama_dp2_zero3", small_llama, {.dp = 2}, "overlapped", 3},
                    Case{"moe_dp2_ep2_zero3_tp2", small_moe, {.dp = 2, .tp = 2, .ep = 2}, "overlapped", 3}),
    [](const auto& info) { return info.param.name; });

TEST(StepTrace, WithoutATracedStepTheFileIsStillOne) {
  run_thread_ranks({.ranks = 2}, [](Group& world) {
    const Mesh mesh(world, {.dp = 2});
    StepTrace trace({.first = 5, .count = 2}, 0);
    for (const int64_t step : {4, 7}) {
      const StepTrace::Scope scope(trace, step);
      EXPECT_EQ(trace_ring(), nullptr);
    }
    const std::string json = trace.collect(mesh, world);
    if (world.rank() == 0) {
      EXPECT_FALSE(Json::parse(json).at("traceEvents").empty());
    }
    EXPECT_FALSE(trace.is_due());
  });
}

}  // namespace
}  // namespace phalanx
