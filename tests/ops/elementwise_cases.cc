#include "phalanx/ops/elementwise.h"

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

TEST_P(Elementwise, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const int64_t n : {0, 1, 7, 65, 8192, 30011}) {
      SCOPED_TRACE(format("{} {}", n, dtype_name(dtype)));
      const Tensor a = random.tensor({n}, dtype);
      const Tensor b = random.tensor({n}, dtype);
      const double factor = random.normal();
      Values scaled = values(a);
      double squares = 0;
      for (double& v : scaled) {
        squares += v * v;
        v *= factor;
      }
      for_each_target_here([&](bool) {
        expect_close(values(add(here(a), here(b))), plus(values(a), values(b)), within(1, dtype), "add");
        const Tensor sum = copy_here(a);
        add_into(sum, here(b));
        expect_close(values(sum), plus(values(a), values(b)), within(1, dtype), "add_into");
        const Tensor x = copy_here(a);
        scale_into(x, factor);
        expect_close(values(x), scaled, within(2, dtype), "scale_into");
        EXPECT_NEAR(number_of(sum_of_squares(here(a))), squares, 1e-12 * squares);
      });
    }
  }
}

// The sum is in f64, whatever the elements are.
TEST_P(Elementwise, SquaresDoNotOverflow) {
  const Tensor x = tensor({3}, DType::f32, {1e30, -1e30, 1e30});
  for_each_target_here([&](bool) { EXPECT_NEAR(number_of(sum_of_squares(here(x))), 3e60, 1e54); });
  const Tensor nan = tensor({3}, DType::f32, {1, std::nan(""), 1});
  for_each_target_here([&](bool) { EXPECT_TRUE(std::isnan(number_of(sum_of_squares(here(nan))))); });
}

TEST_P(Elementwise, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor a = random.tensor({100003}, DType::f32);
  const Tensor b = random.tensor({100003}, DType::f32);
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Tensor scaled = copy_here(a);
    scale_into(scaled, 0.3);
    return {add(here(a), here(b)), scaled, tensor({1}, DType::f64, {number_of(sum_of_squares(here(a)))})};
  });
}

}  // namespace
}  // namespace phalanx::test
