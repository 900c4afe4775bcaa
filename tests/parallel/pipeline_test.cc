// The executor: it runs each rank's list as it stands, and brings every message to its step.
#include "phalanx/parallel/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <thread>

#include "phalanx/base/error.h"
#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

// A stream says which microbatch it is and through how many stages it went; its size depends on it too.
Tensor stream_of(int microbatch) { return Tensor::empty({microbatch % 3 + 1, 2}, DType::f64); }

class CountingStages final : public StageRunner {
 public:
  CountingStages(const Schedule& schedule, int rank, unsigned seed)
      : schedule_(schedule), rank_(rank), random_(seed) {}

  Tensor empty_stream(int microbatch) override { return stream_of(microbatch); }

  Task<Tensor> forward(int chunk, int microbatch, Tensor x) override {
    const int stage = schedule_.stage(rank_, chunk);
    calls.push_back({StepOp::F, chunk, microbatch});
    live.insert({{chunk, microbatch}, true});
    expect(x, microbatch, stage);
    work();
    co_return stage + 1 < schedule_.stages() ? filled(microbatch, stage + 1) : Tensor();
  }
  Task<Tensor> backward(int chunk, int microbatch, Tensor dy, bool defers) override {
    const int stage = schedule_.stage(rank_, chunk);
    const int behind = schedule_.stages() - 1 - stage;
    calls.push_back({defers ? StepOp::I : StepOp::B, chunk, microbatch});
    EXPECT_EQ(live.erase({chunk, microbatch}), 1U);
    expect(dy, microbatch, behind);
    work();
    co_return stage > 0 ? filled(microbatch, behind + 1) : Tensor();
  }
  void weight_gradients(int chunk, int microbatch) override {
    calls.push_back({StepOp::W, chunk, microbatch});
  }

  Steps calls;
  std::map<std::pair<int, int>, bool> live;  // by chunk and microbatch

 private:
  static Tensor filled(int microbatch, int stages) {
    Tensor t = stream_of(microbatch);
    std::ranges::fill(t.span<double>(), 1000 * microbatch + stages);
    return t;
  }
  static void expect(const Tensor& t, int microbatch, int stages) {
    ASSERT_EQ(t.defined(), stages > 0);
    if (stages == 0) return;
    ASSERT_EQ(t.shape(), stream_of(microbatch).shape());
    for (const double v : t.span<double>()) ASSERT_EQ(v, 1000 * microbatch + stages);
  }
  void work() { std::this_thread::sleep_for(std::chrono::microseconds(random_() % 60)); }

  const Schedule& schedule_;
  int rank_;
  std::mt19937 random_;
};

// An overlapped pair is called as a forward and a backward.
Steps as_called(const Steps& list) {
  Steps calls;
  for (const Step& s : list) {
    if (s.op != StepOp::FB) {
      calls.push_back(s);
      continue;
    }
    calls.push_back({StepOp::F, s.chunk, s.microbatch});
    calls.push_back({StepOp::B, s.b_chunk, s.b_microbatch});
  }
  return calls;
}

void run_twice(const Schedule& schedule, const Layout& layout, unsigned seed) {
  run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, layout);
    Pipeline pipeline(schedule, mesh);
    for (int again = 0; again < 2; ++again) {
      const int rank = mesh.coordinate(Axis::pp);
      CountingStages stages(schedule, rank, seed + static_cast<unsigned>(world.rank()));
      pipeline.run(stages);
      Steps recorded;
      for (const TimedStep& s : pipeline.records()) {
        recorded.push_back(s.step);
        EXPECT_LE(s.called_ns, s.begin_ns);
        EXPECT_LE(s.begin_ns, s.end_ns);
      }
      EXPECT_EQ(recorded, schedule.steps[static_cast<size_t>(rank)]) << schedule.name;
      EXPECT_EQ(stages.calls, as_called(pipeline.steps())) << schedule.name;
      EXPECT_EQ(stages.live.empty(), schedule.has_backward) << schedule.name;
    }
  });
}

TEST(Pipeline, RunsEveryScheduleInTheOrderOfItsListAndBringsEveryMessage) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const ScheduleEntry* entry : schedule_entries()) {
    for (const int P : {1, 2, 3, 4}) {
      if (P > 1 && entry->name == "overlapped") continue;
      if (P % 2 != 0 && entry->name == "dualpipe") continue;
      for (const int M : {1, P + 1, 2 * P, 2 * P + 2}) {
        if (M < 2 * P && entry->name.starts_with("dualpipe")) continue;
        if (M % 2 != 0 && entry->name == "dualpipe") continue;
        for (const int slices : {1, 3}) {
          const Schedule s = make_schedule(entry->name, {P, M, 0, slices});
          run_twice(s, {.pp = P}, seed);
          run_twice(forward_only(s, M * slices), {.pp = P}, seed);
        }
      }
    }
  }
}

TEST(Pipeline, LinesOfADataParallelMeshRunBesideEachOther) {
  run_twice(make_schedule("interleaved", {2, 5, 3}), {.pp = 2, .dp = 2}, 1);
  run_twice(make_schedule("zb-v", {2, 4}), {.pp = 2, .tp = 2}, 1);
}

// Every message goes over each boundary between ranks once.
TEST(Pipeline, Bytes) {
  for (const char* name : {"1f1b", "interleaved", "zb-v", "dualpipe"}) {
    const Schedule s = make_schedule(name, {4, 8});
    int64_t sent = 0;
    std::mutex mutex;
    run_thread_ranks({.ranks = 4}, [&](Group& world) {
      Mesh mesh(world, {.pp = 4});
      Pipeline pipeline(s, mesh);
      const int64_t before = mesh.traffic().sent;
      CountingStages stages(s, world.rank(), 1);
      pipeline.run(stages);
      const std::lock_guard lock(mutex);
      sent += mesh.traffic().sent - before;
    });
    int64_t streams = 0;
    for (int m = 0; m < 8; ++m) streams += static_cast<int64_t>(stream_of(m).bytes());
    const int boundaries = s.map == StageMap::vee ? s.stages() - 2 : s.stages() - 1;
    EXPECT_EQ(sent, 2 * boundaries * streams) << name;
  }
}

std::string refusal(const Schedule& schedule, int pp) {
  try {
    run_thread_ranks({.ranks = pp}, [&](Group& world) {
      Mesh mesh(world, {.pp = pp});
      const Pipeline pipeline(schedule, mesh);
    });
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Pipeline, RefusesAScheduleThatWouldStopOrIsForAnotherNumberOfRanks) {
  Schedule s = make_schedule("1f1b", {2, 3});
  EXPECT_NE(refusal(s, 1).find("for 2 ranks, the layout has pp = 1"), std::string::npos);
  std::swap(s.steps[0][0], s.steps[0][1]);  // microbatch 1 before 0
  EXPECT_NE(refusal(s, 2).find("rank 1 before F0"), std::string::npos) << refusal(s, 2);
  s.steps[0].pop_back();
  EXPECT_NE(refusal(s, 2).find("microbatch 2 never goes backward"), std::string::npos) << refusal(s, 2);
}

TEST(Pipeline, AStageThatThrowsEndsAllAndIsNamed) {
  class Throwing final : public StageRunner {
   public:
    explicit Throwing(int rank) : rank_(rank) {}
    Tensor empty_stream(int microbatch) override { return stream_of(microbatch); }
    Task<Tensor> forward(int, int microbatch, Tensor) override {
      if (rank_ == 2 && microbatch == 1) throw Error("stage 2 broke");
      co_return stream_of(microbatch);
    }
    Task<Tensor> backward(int, int microbatch, Tensor, bool) override { co_return stream_of(microbatch); }
    void weight_gradients(int, int) override {}

   private:
    int rank_;
  };
  const Schedule s = make_schedule("1f1b", {4, 8});
  try {
    run_thread_ranks({.ranks = 4}, [&](Group& world) {
      Mesh mesh(world, {.pp = 4});
      Pipeline pipeline(s, mesh);
      Throwing stages(world.rank());
      pipeline.run(stages);
    });
    FAIL() << "it went through";
  } catch (const std::exception& e) {
    EXPECT_NE(std::string(e.what()).find("stage 2 broke"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace phalanx
