#include "phalanx/tensor/tape.h"

#include <gtest/gtest.h>

#include <vector>

namespace phalanx {
namespace {

Tensor scalar(double v) { return Tensor::of(Shape{1}, std::span<const double>(&v, 1)); }
double value(const Tensor& t) { return t.data<double>()[0]; }

TEST(Tape, TakesInReverseAndScopesNeverMix) {
  Tape tape;
  tape.save(scalar(1));
  tape.scope("a").save(scalar(2));
  tape.scope("layer", 0).scope("norm").save(scalar(3));
  tape.scope("layer", 1).scope("norm").save(scalar(4));
  tape.save(scalar(5));
  EXPECT_EQ(value(tape.scope("layer", 0).scope("norm").take()), 3);
  EXPECT_EQ(value(tape.take()), 5);
  EXPECT_EQ(value(tape.scope("layer", 1).scope("norm").take()), 4);
  EXPECT_EQ(value(tape.take()), 1);
  EXPECT_FALSE(tape.empty());
  EXPECT_EQ(value(tape.scope("a").take()), 2);
  EXPECT_TRUE(tape.empty());
}

TEST(Tape, TakingTooMuchOrTheWrongTypeIsABrokenPromise) {
  Tape tape;
  EXPECT_THROW(tape.take(), BrokenPromise);
  tape.scope("a").save(std::vector<int>{1, 2});
  EXPECT_THROW(tape.scope("a").take(), BrokenPromise);
  EXPECT_EQ(tape.scope("a").take<std::vector<int>>(), (std::vector<int>{1, 2}));
}

TEST(Tape, DeferredWorkRunsFirstInFirstOutOrAtOnce) {
  Tape tape;
  std::vector<int> log;
  tape.scope("x").defer([&] { log.push_back(0); });
  EXPECT_EQ(log, (std::vector<int>{0}));
  tape.set_deferring(true);
  for (int i = 1; i < 4; ++i) tape.scope("x", i).defer([&log, i] { log.push_back(i); });
  EXPECT_EQ(log.size(), 1u);
  EXPECT_FALSE(tape.empty());
  tape.run_deferred();
  EXPECT_EQ(log, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_TRUE(tape.empty());
}

TEST(Tape, HoldsItsTensorsAndLetsThemGo) {
  const AllocatorScope memory;
  Tape tape;
  tape.scope("a").save(Tensor::empty({1000}, DType::f64));
  tape.set_deferring(true);
  tape.defer([t = Tensor::empty({1000}, DType::f64)] { (void)t; });
  EXPECT_GE(cpu_allocator().stats().in_use, 16000u);
  tape.clear();
  EXPECT_EQ(cpu_allocator().stats().in_use, 0u);
  tape.set_keeping(false);
  tape.scope("a").save(Tensor::empty({1000}, DType::f64));
  EXPECT_EQ(cpu_allocator().stats().in_use, 0u);
  EXPECT_TRUE(tape.empty());
}

}  // namespace
}  // namespace phalanx
