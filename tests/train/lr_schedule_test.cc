#include "phalanx/train/lr_schedule.h"

#include <gtest/gtest.h>

#include <random>
#include <utility>
#include <vector>

namespace phalanx {
namespace {

TEST(LrSchedule, TableOfNanoGptOnCpu) {
  const LrConfig c{.lr = 1e-3, .min_lr = 1e-4, .warmup = 100, .decay = Decay::cosine};
  // get_lr of nanoGPT with lr_decay_iters = 2000, computed by Python in f64.
  const std::vector<std::pair<int64_t, double>> table = {
      {0, 9.900990099009901e-06},
      {1, 1.9801980198019803e-05},
      {49, 0.0004950495049504951},
      {99, 0.0009900990099009901},
      {100, 0.001},
      {101, 0.0009999993848585915},
      {500, 0.0009051132292283772},
      {1000, 0.0005871607054625496},
      {1050, 0.00055},
      {1500, 0.0002452232927684166},
      {1999, 0.00010000061514140841},
      {2000, 0.0001},
      {2001, 0.0001},
      {5000, 0.0001},
  };
  for (const auto& [step, lr] : table) EXPECT_DOUBLE_EQ(learning_rate(c, step, 2000), lr) << step;
}

TEST(LrSchedule, LinearAndConstant) {
  const LrConfig linear{.lr = 1, .min_lr = 0.2, .warmup = 2, .decay = Decay::linear};
  const std::vector<double> expected = {1.0 / 3, 2.0 / 3, 1, 0.8, 0.6, 0.4, 0.2, 0.2};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_DOUBLE_EQ(learning_rate(linear, static_cast<int64_t>(i), 6), expected[i]) << i;
  }
  const LrConfig constant{.lr = 1, .min_lr = 0.2, .warmup = 1, .decay = Decay::constant};
  EXPECT_EQ(learning_rate(constant, 0, 6), 0.5);
  EXPECT_EQ(learning_rate(constant, 1, 6), 1);
  EXPECT_EQ(learning_rate(constant, 1000, 6), 1);
}

TEST(LrSchedule, DecayMayEndBeforeTheRun) {
  const LrConfig c{.lr = 1, .min_lr = 0.1, .warmup = 0, .decay_steps = 10};
  EXPECT_EQ(learning_rate(c, 0, 100), 1);
  EXPECT_GT(learning_rate(c, 9, 100), 0.1);
  EXPECT_EQ(learning_rate(c, 10, 100), 0.1);
  EXPECT_EQ(learning_rate(c, 99, 100), 0.1);
}

TEST(LrSchedule, RisesThenFallsWithinItsBounds) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 200; ++i) {
    const int64_t steps = random() % 50 + 1;
    const LrConfig c{.lr = 1,
                     .min_lr = static_cast<double>(random() % 11) / 10,
                     .warmup = static_cast<int64_t>(random() % 60),  // may be longer than the run
                     .decay = static_cast<Decay>(random() % 3)};
    double before = 0;
    for (int64_t step = 0; step < steps + 5; ++step) {
      const double lr = learning_rate(c, step, steps);
      EXPECT_GE(lr, 0);
      EXPECT_LE(lr, 1);
      if (step < c.warmup) {
        EXPECT_GT(lr, before);
      } else if (step > c.warmup) {
        EXPECT_LE(lr, before);
      }
      EXPECT_GE(lr, step < c.warmup ? 0 : c.min_lr);
      before = lr;
    }
  }
}

}  // namespace
}  // namespace phalanx
