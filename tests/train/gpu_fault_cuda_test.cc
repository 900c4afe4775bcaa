// A GPU that fails in the middle of a run: what the error says, and what is left.
#include <cstdio>
#include <filesystem>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/resume.h"
#include "phalanx/train/train.h"
#include "tests/cuda_test.h"
#include "tests/train/gpu_trap.h"
#include "tests/train/small_runs.h"

namespace phalanx::test {
namespace {

// Trains until the GPU fails behind step 2, says why, and ends.
[[noreturn]] void train_until_it_fails(const std::string& out, bool blocking) {
  if (!why_no_gpu().empty()) std::exit(4);
  TrainConfig config = small_llama({}, "sequential");
  config.train.device = Device::Kind::cuda;
  config.train.blocking = blocking;
  config.train.steps = 6;
  config.train.save_every = 2;
  config.train.out = out;
  const Dataset data = random_text(config, 1);
  TrainHooks hooks;
  hooks.on_step = [](const StepRecord& step) {
    if (step.step == 2) queue_trap();
  };
  try {
    run_thread_ranks({.ranks = 1}, [&](Group& world) { train(config, data, "", world, hooks); });
  } catch (const DeviceError& e) {
    std::fprintf(stderr, "%s\n", e.what());
    std::exit(3);
  }
  std::exit(5);
}

class GpuFault : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process of its own
    out_ = testing::TempDir() + "/phalanx_gpu_fault";
    std::filesystem::remove_all(out_);
  }
  void TearDown() override { std::filesystem::remove_all(out_); }

  // The run was killed by it, and what was saved before can be opened.
  void expect_left() const { EXPECT_TRUE(open_run(out_).path.ends_with("step-00000002")); }

  std::string out_;
};

TEST_F(GpuFault, NamesStepRankAndTheLastOp) {
  EXPECT_EXIT(train_until_it_fails(out_, false), testing::ExitedWithCode(3),
              "step 3, rank 0 on cuda:0: .*; the last op that was queued is .*train.blocking=true.*the last "
              "checkpoint is .*step-00000002");
  expect_left();
}

TEST_F(GpuFault, NamesTheOpThatIsWaitedFor) {
  EXPECT_EXIT(train_until_it_fails(out_, true), testing::ExitedWithCode(3),
              "step 2, rank 0 on cuda:0: trap: .*; each op was waited for; the last checkpoint is "
              ".*step-00000002");
  expect_left();
}

}  // namespace
}  // namespace phalanx::test
