#include "phalanx/train/same_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/train.h"
#include "tests/train/small_runs.h"

namespace phalanx {
namespace {

// What train says, on each rank, if rank 2 of four has `config` and `data`, the others what `small_moe` is.
std::vector<std::string> said(const TrainConfig& config, unsigned seed) {
  const TrainConfig usual = small_moe({.dp = 4}, "sequential");
  const Dataset data = random_text(usual, seed);
  std::vector<std::string> texts(4);
  run_thread_ranks({.ranks = 4}, [&](Group& world) {
    const bool odd = world.rank() == 2;
    try {
      check_same_run(world, odd ? config : usual, data);
    } catch (const Error& e) {
      texts[static_cast<size_t>(world.rank())] = e.what();
    }
  });
  return texts;
}

TEST(SameRun, NamesTheFirstKeyThatDiffers) {
  const unsigned seed = std::random_device{}();
  TrainConfig config = small_moe({.dp = 4}, "sequential");
  EXPECT_THAT(said(config, seed), testing::Each(""));
  config.lr.lr *= 2;
  EXPECT_THAT(said(config, seed), testing::Each(testing::AllOf(testing::HasSubstr("rank 2: optimizer.lr is "),
                                                               testing::HasSubstr("on rank 0"))));
  config.model.width *= 2;
  EXPECT_THAT(said(config, seed), testing::Each(testing::HasSubstr("rank 2: model.width is ")));
}

TEST(SameRun, KnowsAnotherText) {
  const unsigned seed = std::random_device{}();
  const TrainConfig config = small_moe({.dp = 2}, "sequential");
  const Dataset texts[] = {random_text(config, seed), random_text(config, seed + 1)};
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    try {
      train(config, texts[world.rank()], "", world, {});
      ADD_FAILURE() << "trained on two texts";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::StartsWith("rank 1: data.text"));
    }
  });
}

}  // namespace
}  // namespace phalanx
