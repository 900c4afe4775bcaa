// What rotations are made of, on the host. How rows turn: rope_cases.cc.
#include "phalanx/ops/rope.h"

#include <thread>

#include "tests/ops/reference.h"

namespace phalanx::test {
namespace {

constexpr double kTheta = 10000;

// Ranks that are threads share the tables, and extend them while others read.
TEST(Rope, ThreadsMayExtendTablesAtOnce) {
  Random random;
  SCOPED_TRACE(random.trace());
  std::vector<Tensor> rotated(4);
  std::vector<std::thread> ranks;
  const Rotation turns = rotation(kTheta, 46);
  const Tensor x = random.tensor({9, 46}, DType::f32);
  const std::vector<int32_t> positions = {0, 5, 100, 300, 700, 1500, 3000, 4000, 9000};
  for (Tensor& y : rotated) {
    y = copy(x);
    ranks.emplace_back([&] {
      for (int64_t r = 0; r < 9; ++r) {
        rope_into(y.slice(r, r + 1), indices({positions[static_cast<size_t>(r)]}), 46, turns);
      }
    });
  }
  for (std::thread& t : ranks) t.join();
  const Tensor want = copy(x);
  rope_into(want, indices(positions), 46, turns);
  for (const Tensor& y : rotated) EXPECT_TRUE(same_bits(y, want));
}

// Of Hugging Face's _compute_yarn_parameters and DeepSeek's yarn_apply_mscale (transformers 5.24), in f64.
struct YarnCase {
  double theta;
  Yarn yarn;
  Values frequencies;
  double factor;
  double score_factor;
};
const YarnCase kYarnCases[] = {
    {.theta = 10000.0,
     .yarn = {40.0, 4096, 32.0, 1.0, 1.0, 1.0},
     .frequencies = {1.0, 0.31622776601683794, 0.1, 0.023914724805023366, 0.005125, 0.0008498621211702518,
                     2.5e-05, 7.905694150420947e-06},
     .factor = 1.0,
     .score_factor = 1.8738542070926265},
    {.theta = 10000.0,
     .yarn = {40.0, 4096, 32.0, 1.0, 0.707, 0.5},
     .frequencies = {1.0, 0.15848931924611132, 0.016955233412689664, 0.0013933750969372409,
                     1.5773933612004827e-05},
     .factor = 1.064468903941252,
     .score_factor = 1.4029075244788534},
    {.theta = 500000.0,
     .yarn = {8.0, 8192, 16.0, 2.0, 0, 0},
     .frequencies = {1.0, 0.11224620483093732, 0.012599210498948734, 0.00017677669529663688,
                     1.9842513149602502e-05, 2.227246795350847e-06},
     .factor = 1.2079441541679836,
     .score_factor = 1.0},
    {.theta = 1000.0,
     .yarn = {2.5, 20, 32.0, 1.0, 0, 0.8},
     .frequencies = {1.0, 0.0711311764015569, 0.01264911064067352, 0.0022493653007613964},
     .factor = 1.0916290731874154,
     .score_factor = 1.1519798848139031},
};

TEST(Rope, YarnIsHuggingFaces) {
  for (const YarnCase& c : kYarnCases) {
    const Rotation r = rotation(c.theta, 2 * std::ssize(c.frequencies), c.yarn);
    expect_close(r.frequencies, c.frequencies, within(8, DType::f64), "frequencies");
    EXPECT_NEAR(r.factor, c.factor, 1e-15);
    EXPECT_NEAR(score_factor(c.yarn), c.score_factor, 1e-15);
  }
  EXPECT_EQ(rotation(kTheta, 8, Yarn()), rotation(kTheta, 8));
  EXPECT_EQ(score_factor(Yarn()), 1);
}

}  // namespace
}  // namespace phalanx::test
