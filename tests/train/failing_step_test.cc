// A rank that throws, or never comes back, in the middle of a training step: every other rank stops, and says
// which rank, in which operation of which group.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <latch>
#include <mutex>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "tests/train/step_models.h"
#include "tests/train/step_rank.h"

namespace phalanx {
namespace {

struct Case {
  Layout layout;
  const char* schedule;
};

const Case kCases[] = {{{.pp = 2, .dp = 2, .ep = 2}, "1f1b"},
                       {{.pp = 2, .tp = 2, .etp = 2}, "zb-v"},
                       {{.dp = 2, .cp = 2, .ep = 4}, "overlapped"},
                       {{.cp = 2, .tp = 2}, "sequential"}};

// Does something where a rank first routes.
class AtTheFirstRouter final : public RoutingWatch {
 public:
  explicit AtTheFirstRouter(std::function<void()> act) : act_(std::move(act)) {}
  void routed(const Routed&) override { act_(); }

 private:
  std::function<void()> act_;
};

// What each of four ranks said, the last of which does `act` in its first routing.
std::vector<std::string> said(const Case& c, const Deadlines& deadlines, const std::function<void()>& act,
                              const std::function<void()>& when_told) {
  const unsigned seed = std::random_device{}();
  const ModelConfig config = six_tokens(divisible(moe()));
  std::vector<std::string> texts(4);
  AtTheFirstRouter watch(act);
  EXPECT_ANY_THROW(run_thread_ranks({.ranks = 4, .deadlines = deadlines}, [&](Group& world) {
    try {
      Rank rank(world, c.layout, config, DType::f32, c.schedule, seed);
      if (world.rank() == 3) rank.trainer.watch = &watch;
      compute_gradients(rank.trainer, batches(rank.mesh, rank.model.context_share(), config, seed), 0);
    } catch (const std::exception& e) {
      texts[static_cast<size_t>(world.rank())] = e.what();
      when_told();
      throw;
    }
  }));
  return texts;
}

TEST(FailingStep, ARankThatThrowsIsNamed) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.layout.text());
    const std::vector<std::string> texts = said(
        c, {}, [] { throw Error("disk full"); }, [] {});
    EXPECT_EQ(texts[3], "disk full");
    for (const int survivor : {0, 1, 2}) {
      EXPECT_THAT(texts[static_cast<size_t>(survivor)],
                  testing::AllOf(testing::HasSubstr("rank 3: disk full"), testing::HasSubstr(" of group ")));
    }
  }
}

TEST(FailingStep, ARankThatNeverComesIsNamedAfterTheDeadline) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.layout.text());
    std::latch survivors(3);
    std::latch* const told = &survivors;
    const auto stay_away = [told] { told->wait(); };
    const auto when_told = [told] {
      if (!told->try_wait()) told->count_down();
    };
    const std::vector<std::string> texts =
        said(c, {.progress = std::chrono::seconds(1)}, stay_away, when_told);
    for (const int survivor : {0, 1, 2}) {
      EXPECT_THAT(texts[static_cast<size_t>(survivor)],
                  testing::AllOf(testing::HasSubstr(" of group "),
                                 testing::ContainsRegex("waiting for nobody: rank 3 ")));
    }
  }
}

}  // namespace
}  // namespace phalanx
