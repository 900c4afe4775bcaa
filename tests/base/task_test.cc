#include "phalanx/base/task.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

// Ready after a number of polls; writes what happens into a log.
class Signal final : public Waitable {
 public:
  explicit Signal(int polls) : left_(polls) {}
  bool poll() override { return left_-- <= 0; }
  void wait() override {
    while (!poll()) {
    }
  }

 private:
  int left_;
};

struct Frame {  // counts coroutine frames that are alive
  explicit Frame(int& alive) : alive_(&alive) { ++*alive_; }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;
  ~Frame() { --*alive_; }
  int* alive_;
};

Task<int> leaf(std::vector<std::string>* log, std::string name, int waits, int* alive) {
  const Frame frame(*alive);
  for (int i = 0; i < waits; ++i) {
    log->push_back(name + std::to_string(i));
    Signal signal(i);
    co_await Suspend(signal);
  }
  co_return waits;
}

Task<int> nested(std::vector<std::string>* log, std::string name, int waits, int* alive, int depth) {
  const Frame frame(*alive);
  if (depth == 0) co_return co_await leaf(log, name, waits, alive);
  const int n = co_await nested(log, name, waits, alive, depth - 1);
  co_return n + 1;
}

TEST(Task, RunGivesTheValueThroughNesting) {
  std::vector<std::string> log;
  int alive = 0;
  EXPECT_EQ(run(nested(&log, "a", 3, &alive, 5)), 8);
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(log, (std::vector<std::string>{"a0", "a1", "a2"}));
}

TEST(Task, OverlapAlternatesStrictlyWhateverIsReady) {
  std::vector<std::string> log;
  int alive = 0;
  const auto [a, b] = run(overlap(nested(&log, "a", 4, &alive, 2), leaf(&log, "b", 2, &alive)));
  EXPECT_EQ(a, 6);
  EXPECT_EQ(b, 2);
  EXPECT_EQ(log, (std::vector<std::string>{"a0", "b0", "a1", "b1", "a2", "a3"}));
  EXPECT_EQ(alive, 0);
}

Task<int> overlapped_pair(std::vector<std::string>* log, int* alive) {
  Task<int> a = leaf(log, "a", 2, alive);
  Task<int> b = leaf(log, "b", 2, alive);
  const auto both = co_await overlap(std::move(a), std::move(b));
  co_return both.first + both.second;
}

TEST(Task, AnOverlapInsideAnOverlapGivesWay) {
  std::vector<std::string> log;
  int alive = 0;
  const auto [ab, c] = run(overlap(overlapped_pair(&log, &alive), leaf(&log, "c", 3, &alive)));
  EXPECT_EQ(ab, 4);
  EXPECT_EQ(c, 3);
  EXPECT_EQ(log, (std::vector<std::string>{"a0", "b0", "c0", "a1", "c1", "b1", "c2"}));
}

Task<int> failing(int waits) {
  for (int i = 0; i < waits; ++i) {
    Signal signal(0);
    co_await Suspend(signal);
  }
  throw Error("stopped after {}", waits);
}

TEST(Task, AnErrorUnwindsBothSidesOfAnOverlap) {
  std::vector<std::string> log;
  int alive = 0;
  for (int waits = 0; waits < 3; ++waits) {
    EXPECT_THROW(run(overlap(nested(&log, "a", 5, &alive, 3), failing(waits))), Error);
    EXPECT_EQ(alive, 0);
    EXPECT_THROW(run(overlap(failing(waits), nested(&log, "a", 5, &alive, 3))), Error);
    EXPECT_EQ(alive, 0);
  }
}

Task<> nothing() { co_return; }

TEST(Task, VoidTasksOverlapAsUnits) { run(overlap(nothing(), nothing())); }

}  // namespace
}  // namespace phalanx
