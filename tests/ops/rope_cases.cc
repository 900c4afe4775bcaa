#include "phalanx/ops/rope.h"

#include "tests/ops/on_device.h"

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
    const Tensor y = copy_here(x);
    rope_into(y, here(indices(positions)), head_dim, turns());
    return y;
  }
  Tensor rotated_back(const Tensor& x) const {
    const Tensor y = copy_here(x);
    rope_backward_into(y, here(indices(positions)), head_dim, turns());
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

TEST_P(Rope, RotatesPairsByTheirPosition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Problem& p : problems(random)) {
    for (const DType dtype : kFloats) {
      const Tensor x = random.tensor(p.shape(), dtype);
      const Values want = reference(p, values(x));
      for_each_target_here(
          [&](bool) { expect_close(values(p.rotated(x)), want, within(4, dtype, 3), "rotated"); });
    }
  }
}

// A rotation's gradient is the inverse rotation, which is also its transpose.
TEST_P(Rope, BackwardIsInverseAndGradient) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Problem& p : problems(random)) {
    for (const DType dtype : kFloats) {
      const Tensor x = random.tensor(p.shape(), dtype);
      expect_close(values(p.rotated_back(p.rotated(x).to(kCpu))), values(x), within(8, dtype, 3),
                   "there and back");
    }
    const Tensor x = random.tensor(p.shape(), DType::f64);
    const Tensor dy = random.tensor(p.shape(), DType::f64);
    if (x.numel() > 200) continue;
    expect_gradient(values(p.rotated_back(dy)), numeric_gradient(x, [&] { return dot(p.rotated(x), dy); }),
                    "x");
  }
}

TEST_P(Rope, SlicesAndThreadsGiveTheSameBits) {
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

// With a factor the backward is still the transpose: ⟨R x, y⟩ = ⟨x, Rᵀ y⟩, and lengths grow by it.
TEST_P(Rope, YarnGrowsWhatIsRotated) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Rotation r = rotation(kTheta, 12, {.factor = 4, .original_context = 16});
  ASSERT_GT(r.factor, 1.1);
  const Tensor positions = here(indices({0, 3, 50, 7, 300}));
  const Tensor x = random.tensor({5, 24}, DType::f64);
  const Tensor y = random.tensor({5, 24}, DType::f64);
  const Tensor forth = copy_here(x);
  rope_into(forth, positions, 12, r);
  const Tensor back = copy_here(y);
  rope_backward_into(back, positions, 12, r);
  EXPECT_NEAR(dot(forth, y), dot(x, back), 1e-11);
  EXPECT_NEAR(dot(forth, forth), r.factor * r.factor * dot(x, x), 1e-10);
}

TEST_P(Rope, RefusesWhatDoesNotFit) {
  const Tensor x = here(Tensor::zeros({2, 12}, DType::f32));
  const Rotation turns = rotation(kTheta, 4);
  const auto refused = [&](const std::vector<int32_t>& positions, int64_t head_dim) {
    expect_refused([&] { rope_into(x, here(indices(positions)), head_dim, turns); });
  };
  refused({0, 1}, 8);
  refused({0, 1}, 3);
  refused({0}, 4);
  refused({0, -1}, 4);
  EXPECT_THROW(rotation(kTheta, 3), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
