#include "phalanx/ops/gelu.h"

#include <limits>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

constexpr Gelu kKinds[] = {Gelu::erf, Gelu::tanh};

double reference(double x, Gelu kind) {
  if (kind == Gelu::erf) return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
  const double z = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  return x / (1 + std::exp(-2 * z));  // x/2·(1 + tanh z) without cancellation
}

double slope(double x, Gelu kind) {
  if (kind == Gelu::erf) {
    return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
  }
  const double s = 1 / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  return s + x * s * (1 - s) * 2 * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

// Points dense around 0 and out to where the function has reached 0 or x.
Tensor points(Random& random, int64_t n, DType dtype) {
  const Tensor x = Tensor::empty({n}, dtype);
  visit_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    for (T& v : x.span<T>()) {
      v = static_cast<T>(random.integer(0, 1) == 0 ? 2 * random.normal() : random.uniform(-20, 20));
    }
  });
  return x;
}

TEST_P(GeluTest, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const int64_t n : {0, 1, 3, 33, 20011}) {
      const Tensor x = points(random, n, dtype);
      for (const Gelu kind : kKinds) {
        Values want = values(x);
        for (double& v : want) v = reference(v, kind);
        for_each_target_here([&](bool) {
          expect_close(values(gelu(here(x), kind)), want, within(dtype == DType::f64 ? 8 : 4, dtype, 0.1),
                       "gelu");
        });
      }
    }
  }
}

// The relative error stays small far into the negative tail, where the result is the product of a large and a
// tiny number: as stated in simd_math-inl.h for erf, growing with the exponent for tanh.
TEST_P(GeluTest, KeepsItsDigitsInTheTail) {
  Random random;
  SCOPED_TRACE(random.trace());
  for_each_target_here([&](bool fused) {
    if (!fused) return;
    for (const Gelu kind : kKinds) {
      Values x;
      const double end = kind == Gelu::erf ? -12.5 : -6;
      for (int i = 0; i < 100000; ++i) x.push_back(static_cast<float>(random.uniform(end, 5)));
      Values want = x;
      for (double& v : want) v = reference(v, kind);
      const Tensor y = gelu(here(tensor({static_cast<int64_t>(x.size())}, DType::f32, x)), kind);
      expect_close(values(y), want, within(kind == Gelu::erf ? 8 : 64, DType::f32), "gelu");
    }
  });
}

TEST_P(GeluTest, TakesHugeNumbers) {
  const double huge = std::numeric_limits<float>::max();
  for_each_target_here([&](bool) {
    for (const Gelu kind : kKinds) {
      const Tensor x = here(tensor({6}, DType::f32, {huge, -huge, 1e19, -1e19, 100, -100}));
      EXPECT_EQ(values(gelu(x, kind)), (Values{huge, 0, static_cast<float>(1e19), 0, 100, 0}));
      const Tensor ones = here(tensor({6}, DType::f32, Values(6, 1)));
      EXPECT_EQ(values(gelu_backward(ones, x, kind)), (Values{1, 0, 1, 0, 1, 0}));
      const Tensor nan = here(tensor({2}, DType::f32, {std::nan(""), 1}));
      EXPECT_TRUE(std::isnan(values(gelu(nan, kind))[0]));
      EXPECT_TRUE(std::isnan(values(gelu_backward(ones.slice(0, 2), nan, kind))[0]));
    }
  });
}

TEST_P(GeluTest, BackwardEqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    const Tensor x = points(random, 20011, dtype);
    const Tensor dy = random.tensor({20011}, dtype);
    for (const Gelu kind : kKinds) {
      const Values at = values(x);
      Values want = values(dy);
      for (size_t i = 0; i < want.size(); ++i) want[i] *= slope(at[i], kind);
      for_each_target_here([&](bool) {
        expect_close(values(gelu_backward(here(dy), here(x), kind)), want, within(16, dtype, 4),
                     "gelu_backward");
      });
    }
  }
}

TEST_P(GeluTest, BackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Gelu kind : kKinds) {
    const Tensor x = random.tensor({5, 7}, DType::f64, 2);
    const Tensor dy = random.tensor({5, 7}, DType::f64);
    const auto loss = [&] { return dot(dy, gelu(here(x), kind)); };
    expect_gradient(values(gelu_backward(here(dy), here(x), kind)), numeric_gradient(x, loss), "x");
  }
}

TEST_P(GeluTest, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = here(random.tensor({50, 1001}, DType::f32));
  const Tensor dy = here(random.tensor({50, 1001}, DType::f32));
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    return {gelu(x, Gelu::erf), gelu(x, Gelu::tanh), gelu_backward(dy, x, Gelu::erf),
            gelu_backward(dy, x, Gelu::tanh)};
  });
}

}  // namespace
}  // namespace phalanx::test
