#include "phalanx/ops/latent_kv.h"

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

struct Problem {
  int64_t rows;
  LatentHeads shape;

  Tensor kv(Random& random, DType dtype) const {
    return random.tensor({rows, shape.heads * (shape.nope + shape.values)}, dtype);
  }
  Tensor rope(Random& random, DType dtype) const { return random.tensor({rows, shape.rope}, dtype); }
};

constexpr Problem kProblems[] = {{5, {3, 4, 2, 7}},     {0, {2, 4, 2, 4}},    {1, {1, 1, 2, 1}},
                                 {211, {8, 16, 6, 24}}, {97, {3, 16, 8, 24}}, {300, {5, 24, 8, 3}}};

size_t at(int64_t row, int64_t head, int64_t column, int64_t heads, int64_t columns) {
  return static_cast<size_t>((row * heads + head) * columns + column);
}

TEST_P(LatentKv, PutsEveryColumnInItsPlace) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Problem& p : kProblems) {
    const auto& [heads, nope, rope, width] = p.shape;
    for (const DType dtype : kFloats) {
      const Tensor kv = p.kv(random, dtype);
      const Tensor k_rope = p.rope(random, dtype);
      const KeysAndValues out = expand_kv(here(kv), here(k_rope), p.shape);
      const Values from = values(kv);
      const Values shared = values(k_rope);
      const Values k = values(out.k_THd);
      const Values v = values(out.v_THd);
      ASSERT_EQ(k.size(), static_cast<size_t>(p.rows * heads * (nope + rope)));
      ASSERT_EQ(v.size(), static_cast<size_t>(p.rows * heads * width));
      for (int64_t t = 0; t < p.rows; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t c = 0; c < nope; ++c) {
            EXPECT_EQ(k[at(t, h, c, heads, nope + rope)], from[at(t, h, c, heads, nope + width)]);
          }
          for (int64_t c = 0; c < rope; ++c) {
            EXPECT_EQ(k[at(t, h, nope + c, heads, nope + rope)], shared[at(t, 0, c, 1, rope)]);
          }
          for (int64_t c = 0; c < width; ++c) {
            EXPECT_EQ(v[at(t, h, c, heads, width)], from[at(t, h, nope + c, heads, nope + width)]);
          }
        }
      }
    }
  }
}

// The op is linear: ⟨expand(x), dy⟩ = ⟨x, backward(dy)⟩ for every x.
TEST_P(LatentKv, BackwardIsTheTranspose) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Problem& p : kProblems) {
    const auto& [heads, nope, rope, width] = p.shape;
    const Tensor dk = random.tensor({p.rows, heads * (nope + rope)}, DType::f64);
    const Tensor dv = random.tensor({p.rows, heads * width}, DType::f64);
    const LatentGradients d = expand_kv_backward(here(dk), here(dv), p.shape);
    for (int i = 0; i < 5; ++i) {
      const Tensor kv = p.kv(random, DType::f64);
      const Tensor k_rope = p.rope(random, DType::f64);
      const KeysAndValues out = expand_kv(here(kv), here(k_rope), p.shape);
      const double forward = dot(out.k_THd, dk) + dot(out.v_THd, dv);
      EXPECT_NEAR(dot(kv, d.dkv_THd) + dot(k_rope, d.dk_rope_Td), forward, 1e-9 * (1 + std::abs(forward)));
    }
  }
}

TEST_P(LatentKv, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const LatentHeads shape = {7, 20, 6, 12};
  const Tensor dk = here(random.tensor({400, 7 * 26}, DType::f32));
  const Tensor dv = here(random.tensor({400, 7 * 12}, DType::f32));
  expect_same_bits_for_any_threads([&] {
    const LatentGradients d = expand_kv_backward(dk, dv, shape);
    const KeysAndValues out = expand_kv(d.dkv_THd, d.dk_rope_Td, shape);
    return std::vector{d.dkv_THd, d.dk_rope_Td, out.k_THd, out.v_THd};
  });
}

TEST_P(LatentKv, RefusesShapesThatDoNotFit) {
  const auto zeros = [](const Shape& shape) { return here(Tensor::zeros(shape, DType::f32)); };
  const Tensor kv = zeros({3, 2 * (4 + 5)});
  EXPECT_THROW(expand_kv(kv, zeros({3, 3}), {2, 4, 2, 5}), BrokenPromise);
  EXPECT_THROW(expand_kv(kv, zeros({2, 2}), {2, 4, 2, 5}), BrokenPromise);
  EXPECT_THROW(expand_kv(kv, zeros({3, 2}), {2, 4, 2, 4}), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
