#include "phalanx/ops/rope.h"

#include <thread>

#include "tests/ops/reference.h"

namespace phalanx::test {
namespace {

constexpr double kTheta = 10000;

struct Problem {
  int64_t heads;
  int64_t head_dim;
  std::vector<int32_t> positions;
  int64_t still = 0;  // first columns of a head, which do not turn

  Rotation turns() const { return rotation(kTheta, head_dim - still); }

  Shape shape() const { return {std::ssize(positions), heads * head_dim}; }
  Tensor rotated(const Tensor& x) const {
    const Tensor y = copy(x);
    rope_into(y, indices(positions), head_dim, turns());
    return y;
  }
  Tensor rotated_back(const Tensor& x) const {
    const Tensor y = copy(x);
    rope_backward_into(y, indices(positions), head_dim, turns());
    return y;
  }
};

// Positions in and behind the tables that are kept, first small ones, so that tables grow.
std::vector<Problem> problems(Random& random) {
  std::vector<Problem> all = {
      {3, 10, {0, 1, 2, 255}}, {1, 2, {}},          {2, 64, {7}}, {1, 18, {100'000'000, 3}},
      {3, 11, {0, 9, 300}, 5}, {2, 48, {1, 77}, 32}};
  Problem many = {3, 10, {}};
  for (int i = 0; i < 71; ++i) many.positions.push_back(static_cast<int32_t>(random.integer(0, 5000)));
  all.push_back(many);
  return all;
}

Values reference(const Problem& p, const Values& x) {
  Values y(x.size());
  const auto width = static_cast<size_t>(p.heads * p.head_dim);
  const auto still = static_cast<size_t>(p.still);
  const auto turning = static_cast<size_t>(p.head_dim) - still;
  const size_t half = turning / 2;
  for (size_t at = 0; at < x.size(); ++at) {
    const size_t in_head = at % width % (still + turning);
    if (in_head < still) {
      y[at] = x[at];
      continue;
    }
    const size_t column = in_head - still;
    const size_t i = column % half;
    const double angle = p.positions[at / width] *
                         std::pow(kTheta, -2.0 * static_cast<double>(i) / static_cast<double>(turning));
    y[at] = column < half ? x[at] * std::cos(angle) - x[at + half] * std::sin(angle)
                          : x[at] * std::cos(angle) + x[at - half] * std::sin(angle);
  }
  return y;
}

TEST(Rope, RotatesPairsByTheirPosition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Problem& p : problems(random)) {
    for (const DType dtype : kFloats) {
      const Tensor x = random.tensor(p.shape(), dtype);
      const Values want = reference(p, values(x));
      for_each_target(
          [&](bool) { expect_close(values(p.rotated(x)), want, within(4, dtype, 3), "rotated"); });
    }
  }
}

// A rotation's gradient is the inverse rotation, which is also its transpose.
TEST(Rope, BackwardIsInverseAndGradient) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Problem& p : problems(random)) {
    for (const DType dtype : kFloats) {
      const Tensor x = random.tensor(p.shape(), dtype);
      expect_close(values(p.rotated_back(p.rotated(x))), values(x), within(8, dtype, 3), "there and back");
    }
    const Tensor x = random.tensor(p.shape(), DType::f64);
    const Tensor dy = random.tensor(p.shape(), DType::f64);
    if (x.numel() > 200) continue;
    expect_gradient(values(p.rotated_back(dy)), numeric_gradient(x, [&] { return dot(p.rotated(x), dy); }),
                    "x");
  }
}

TEST(Rope, SlicesAndThreadsGiveTheSameBits) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    Problem p{4, 34, {}};
    for (int i = 0; i < 301; ++i) p.positions.push_back(static_cast<int32_t>(random.integer(0, 3000)));
    const Tensor x = random.tensor(p.shape(), dtype);
    const Tensor whole = p.rotated(x);
    expect_same_bits_for_any_threads([&] { return std::vector{p.rotated(x), p.rotated_back(x)}; });
    const Problem part = {4, 34, {p.positions.begin() + 40, p.positions.begin() + 57}};
    EXPECT_TRUE(same_bits(part.rotated(x.slice(40, 57)), whole.slice(40, 57)));
  }
}

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
  const Tensor want = Problem{1, 46, positions}.rotated(x);
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

// With a factor the backward is still the transpose: ⟨R x, y⟩ = ⟨x, Rᵀ y⟩, and lengths grow by it.
TEST(Rope, YarnGrowsWhatIsRotated) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Rotation r = rotation(kTheta, 12, {.factor = 4, .original_context = 16});
  ASSERT_GT(r.factor, 1.1);
  const Tensor positions = indices({0, 3, 50, 7, 300});
  const Tensor x = random.tensor({5, 24}, DType::f64);
  const Tensor y = random.tensor({5, 24}, DType::f64);
  const Tensor forth = copy(x);
  rope_into(forth, positions, 12, r);
  const Tensor back = copy(y);
  rope_backward_into(back, positions, 12, r);
  EXPECT_NEAR(dot(forth, y), dot(x, back), 1e-11);
  EXPECT_NEAR(dot(forth, forth), r.factor * r.factor * dot(x, x), 1e-10);
}

TEST(Rope, RefusesWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 12}, DType::f32);
  const Rotation turns = rotation(kTheta, 4);
  EXPECT_THROW(rope_into(x, indices({0, 1}), 8, turns), BrokenPromise);
  EXPECT_THROW(rope_into(x, indices({0, 1}), 3, turns), BrokenPromise);
  EXPECT_THROW(rope_into(x, indices({0}), 4, turns), BrokenPromise);
  EXPECT_THROW(rope_into(x, indices({0, -1}), 4, turns), BrokenPromise);
  EXPECT_THROW(rotation(kTheta, 3), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
