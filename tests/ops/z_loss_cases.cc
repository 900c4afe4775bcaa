// The router z-loss against its definition, and its gradient by finite differences.
#include "phalanx/ops/route.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

Values reference(const Tensor& logits) {
  const Values l = values(logits);
  const auto experts = static_cast<size_t>(logits.dim(1));
  Values out;
  for (size_t r = 0; r < l.size(); r += experts) {
    const double max = *std::max_element(&l[r], &l[r] + experts);
    double sum = 0;
    for (size_t e = 0; e < experts; ++e) sum += std::exp(l[r + e] - max);
    out.push_back(max + std::log(sum));
  }
  return out;
}

TEST_P(ZLoss, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Shape& shape : {Shape{0, 3}, Shape{1, 1}, Shape{7, 5}, Shape{33, 64}, Shape{9, 77}}) {
      const Tensor logits = random.tensor(shape, dtype, 3);
      const Values want = reference(logits);
      double squares = 0;
      for (const double l : want) squares += l * l;
      for_each_target_here([&](bool) {
        const Tensor lse = log_sum_exp(here(logits));
        expect_close(values(lse), want, within(8, dtype, 4), "log_sum_exp");
        EXPECT_NEAR(values(z_loss(lse))[0], squares, (dtype == DType::f64 ? 1e-13 : 1e-5) * squares);
      });
    }
  }
}

TEST_P(ZLoss, HoldsAtAnyMagnitude) {
  const Tensor logits = tensor({2, 3}, DType::f32, {1e30, -1e30, 0, -5e4, -5e4, -5e4});
  for_each_target_here([&](bool) {
    expect_close(values(log_sum_exp(here(logits))), {1e30, -5e4 + std::log(3.0)}, within(4, DType::f32),
                 "rows");
  });
}

TEST_P(ZLoss, BackwardAddsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor logits = random.tensor({4, 7}, DType::f64, 2);
  const auto loss = [&] { return 0.3 * values(z_loss(log_sum_exp(here(logits))))[0]; };
  const Values numeric = numeric_gradient(logits, loss);
  const Tensor before = random.tensor({4, 7}, DType::f64);
  for_each_target_here([&](bool) {
    const Tensor dlogits = copy_here(before);
    z_loss_backward_into(dlogits, here(logits), log_sum_exp(here(logits)), 0.3);
    expect_gradient(values(dlogits), plus(values(before), numeric), "logits");
  });
}

TEST_P(ZLoss, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor logits = here(random.tensor({3000, 17}, DType::f32));
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Tensor lse = log_sum_exp(logits);
    const Tensor dlogits = Tensor::zeros(logits.shape(), DType::f32, logits.device());
    z_loss_backward_into(dlogits, logits, lse, 0.1);
    return {lse, z_loss(lse), dlogits};
  });
}

}  // namespace
}  // namespace phalanx::test
