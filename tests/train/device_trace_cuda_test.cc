// The GPU's rows of a trace of training steps.
#include "phalanx/tensor/device_trace.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/rank_run.h"
#include "tests/cuda_test.h"
#include "tests/train/small_runs.h"

namespace phalanx::test {
namespace {

struct Traced {
  std::vector<Span> on_device;
  std::set<std::string> units;  // layers
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  TraceRing ring;  // has the texts
};

// Two steps of small_llama, behind one that is not traced.
void trace_steps(const OptimizerConfig& optimizer, Traced& out) {
  TrainConfig config = small_llama({}, "sequential");
  config.train.device = Device::Kind::cuda;
  config.optimizer = optimizer;
  const Dataset data = random_text(config, std::random_device{}());
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    DeviceTrace trace(rank.device());
    for (int64_t s = 0; s < 3; ++s) {
      const TraceScope scope(s > 0 ? &out.ring : nullptr);
      const DeviceTraceScope on_device(s > 0 ? &trace : nullptr);
      if (s == 1) out.begin_ns = trace_now();
      train_step(rank.trainer(), data.train_batches(s, rank.share()), 1e-3, static_cast<uint64_t>(s));
    }
    out.on_device = trace.take();
    out.end_ns = trace_now();
    EXPECT_TRUE(trace.take().empty());
    for (const Parameter& p : rank.parameters().all()) {
      if (p.name().starts_with("layers.")) out.units.insert(unit_of(p.name()));
    }
  });
}

class DeviceTraceTest : public CudaTest {};

TEST_F(DeviceTraceTest, HasEveryLayerForwardBackwardAndTheUpdate) {
  Traced traced;
  trace_steps({}, traced);
  std::set<std::pair<std::string, TracePhase>> seen;
  int updates = 0;
  for (const Span& s : traced.on_device) {
    EXPECT_EQ(s.row, TraceRow::device);
    seen.emplace(s.of.unit, s.of.phase);
    if (s.of.phase != TracePhase::update) continue;
    ++updates;
    EXPECT_EQ(s.lane > 0, std::string_view(s.name) == "adamw_into") << s.name;
  }
  for (const std::string& unit : traced.units) {
    EXPECT_TRUE(seen.contains({unit, TracePhase::forward})) << unit;
    EXPECT_TRUE(seen.contains({unit, TracePhase::backward})) << unit;
  }
  EXPECT_GT(updates, 0);
}

// Ops of a stream follow each other, between the beginning of the steps and the end of the wait for them.
TEST_F(DeviceTraceTest, OpsOfAStreamFollowEachOther) {
  OptimizerConfig apart;
  apart.overlap = false;
  for (const OptimizerConfig& optimizer : {OptimizerConfig{}, apart}) {
    Traced traced;
    trace_steps(optimizer, traced);
    std::map<int, int64_t> ends;
    int64_t busy = 0;
    for (const Span& s : traced.on_device) {
      EXPECT_LE(s.begin_ns, s.end_ns) << s.name;
      const auto [last, is_first] = ends.try_emplace(s.lane, s.begin_ns);
      EXPECT_GE(s.begin_ns, last->second) << s.name;
      last->second = s.end_ns;
      busy += s.end_ns - s.begin_ns;
      EXPECT_LE(s.end_ns, traced.end_ns);
    }
    EXPECT_EQ(ends.size(), optimizer.overlap ? 2u : 1u);
    EXPECT_GT(busy, 0);
    // Events tell times to half a microsecond.
    EXPECT_GE(traced.on_device.front().end_ns, traced.begin_ns - 1000);
  }
}

}  // namespace
}  // namespace phalanx::test
