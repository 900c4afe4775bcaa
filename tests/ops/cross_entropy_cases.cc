#include "phalanx/ops/cross_entropy.h"

#include <algorithm>
#include <limits>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

std::vector<int32_t> random_targets(Random& random, int64_t n, int64_t vocabulary) {
  std::vector<int32_t> targets(static_cast<size_t>(n));
  for (int32_t& t : targets) {
    t = random.integer(0, 4) == 0 ? kIgnore : static_cast<int32_t>(random.integer(0, vocabulary - 1));
  }
  return targets;
}

struct Reference {
  double loss_sum = 0;
  Values dlogits;
};

Reference reference(const Values& logits, const std::vector<int32_t>& targets, double scale) {
  Reference out;
  const size_t v = targets.empty() ? 0 : logits.size() / targets.size();
  for (size_t r = 0; r < targets.size(); ++r) {
    const double* row = &logits[r * v];
    const double max = *std::max_element(row, row + v);
    double sum = 0;
    for (size_t i = 0; i < v; ++i) sum += std::exp(row[i] - max);
    const bool counts = targets[r] != kIgnore;
    if (counts) out.loss_sum += max - row[targets[r]] + std::log(sum);
    for (size_t i = 0; i < v; ++i) {
      const double hit = static_cast<int64_t>(i) == targets[r] ? 1 : 0;
      out.dlogits.push_back(counts ? scale * (std::exp(row[i] - max) / sum - hit) : 0);
    }
  }
  return out;
}

// Without the element of each row that is its target.
Values off_target(const Values& rows, const std::vector<int32_t>& targets) {
  Values out;
  const size_t v = targets.empty() ? 0 : rows.size() / targets.size();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (static_cast<int64_t>(i % v) != targets[i / v]) out.push_back(rows[i]);
  }
  return out;
}

void expect_as_reference(Random& random, const Shape& shape, DType dtype, double deviation) {
  SCOPED_TRACE(format("{} {} deviation {}", shape, dtype_name(dtype), deviation));
  const Tensor logits = random.tensor(shape, dtype, deviation);
  const std::vector<int32_t> targets = random_targets(random, shape[0], shape[1]);
  const double scale = random.uniform(0.1, 2);
  const Reference want = reference(values(logits), targets, scale);
  for_each_target_here([&](bool) {
    const CrossEntropy got = cross_entropy(here(logits), here(indices(targets)));
    const double terms = static_cast<double>(shape[0]) * (1 + deviation);
    expect_close({number_of(got.loss_sum)}, {want.loss_sum}, within(16, dtype, terms), "loss");
    const Tensor dlogits = copy_here(logits);
    cross_entropy_backward_into(dlogits, here(indices(targets)), got.log_sum_exp_T2, scale);
    expect_close(values(dlogits), want.dlogits, within(32, dtype, scale), "dlogits");
    const Tensor both = copy_here(logits);
    const Tensor loss = cross_entropy_gradient_into(both, here(indices(targets)), scale);
    expect_close({number_of(loss)}, {want.loss_sum}, within(16, dtype, terms), "loss with its gradient");
    expect_close(values(both), want.dlogits, within(32, dtype, scale), "dlogits with the loss");
    // Off the targets nothing cancels; p = e^y has y's own rounding errors |y| times over.
    const double ulps = 16 + 16 * std::min(deviation, 30.0);
    expect_close(off_target(values(dlogits), targets), off_target(want.dlogits, targets),
                 within(ulps, dtype, 1e-30), "dlogits off the targets");
  });
}

TEST_P(CrossEntropyLoss, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Shape& shape : {Shape{0, 7}, Shape{1, 1}, Shape{3, 5}, Shape{200, 65}, Shape{3, 5003}}) {
      expect_as_reference(random, shape, dtype, 2);
    }
  }
  expect_as_reference(random, {2, 50257}, DType::f32, 2);
  expect_as_reference(random, {3, 50260}, DType::f32, 2);
}

// Logits of any size, in any order of chunks: the running maximum is replaced on the way.
TEST_P(CrossEntropyLoss, HoldsAtAnyMagnitude) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const double deviation : {1e-20, 100.0, 1e6, 1e30}) {
    expect_as_reference(random, {5, 65}, DType::f32, deviation);
    expect_as_reference(random, {2, 9001}, DType::f32, deviation);
  }
  const double most = std::numeric_limits<float>::max();
  const Tensor logits = tensor({2, 4}, DType::f32, {most, -most, most, 0, -most, -most, -most, -most});
  for_each_target_here([&](bool) {
    const CrossEntropy got = cross_entropy(here(logits), here(indices({2, 3})));
    EXPECT_NEAR(number_of(got.loss_sum), std::log(2) + std::log(4), 1e-6);
    const Tensor d = copy_here(logits);
    cross_entropy_backward_into(d, here(indices({2, 3})), got.log_sum_exp_T2, 1);
    expect_close(values(d), {0.5, 0, -0.5, 0, 0.25, 0.25, 0.25, -0.75}, within(4, DType::f32), "dlogits");
  });
}

TEST_P(CrossEntropyLoss, TakesMaskedLogits) {
  const double none = -std::numeric_limits<double>::infinity();
  Values row(9000, none);  // the first chunks hold nothing
  row[8500] = 3;
  row[8501] = 3;
  const Tensor logits = tensor({1, 9000}, DType::f32, row);
  for_each_target_here([&](bool) {
    const CrossEntropy got = cross_entropy(here(logits), here(indices({8501})));
    EXPECT_NEAR(number_of(got.loss_sum), std::log(2), 1e-6);
    const Tensor d = copy_here(logits);
    cross_entropy_backward_into(d, here(indices({8501})), got.log_sum_exp_T2, 1);
    EXPECT_EQ(values(d)[0], 0);
    EXPECT_NEAR(values(d)[8500], 0.5, 1e-6);
    EXPECT_NEAR(values(d)[8501], -0.5, 1e-6);
  });
}

TEST_P(CrossEntropyLoss, CarriesNan) {
  for (const size_t at : {size_t{0}, size_t{40}, size_t{64}}) {
    Values row(65, 1);
    row[at] = std::nan("");
    for_each_target_here([&](bool) {
      const Tensor logits = here(tensor({1, 65}, DType::f32, row));
      EXPECT_TRUE(std::isnan(number_of(cross_entropy(logits, here(indices({3}))).loss_sum))) << at;
    });
  }
}

TEST_P(CrossEntropyLoss, IgnoresAllTargets) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor logits = here(random.tensor({3, 7}, DType::f32));
  const Tensor targets = here(indices({kIgnore, kIgnore, kIgnore}));
  const CrossEntropy got = cross_entropy(logits, targets);
  EXPECT_EQ(number_of(got.loss_sum), 0);
  cross_entropy_backward_into(logits, targets, got.log_sum_exp_T2, 1);
  EXPECT_EQ(values(logits), Values(21));
}

TEST_P(CrossEntropyLoss, RefusesTargetsOutsideTheVocabulary) {
  const Tensor logits = here(Tensor::zeros({1, 4}, DType::f32));
  for (const int32_t target : {-2, 4}) {
    expect_refused([&] { (void)cross_entropy(logits, here(indices({target}))); });
  }
}

TEST_P(CrossEntropyLoss, BackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor logits = random.tensor({4, 7}, DType::f64, 2);
  const Tensor targets = here(indices({3, kIgnore, 0, 6}));
  const auto forward = [&] { return cross_entropy(here(logits), targets); };
  const Values numeric = numeric_gradient(logits, [&] { return 0.3 * number_of(forward().loss_sum); });
  const Tensor dlogits = copy_here(logits);
  cross_entropy_backward_into(dlogits, targets, forward().log_sum_exp_T2, 0.3);
  expect_gradient(values(dlogits), numeric, "logits");
}

TEST_P(CrossEntropyLoss, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor logits = random.tensor({700, 65}, DType::f32);
  const Tensor targets = here(indices(random_targets(random, 700, 65)));
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const CrossEntropy got = cross_entropy(here(logits), targets);
    const Tensor d = copy_here(logits);
    cross_entropy_backward_into(d, targets, got.log_sum_exp_T2, 0.3);
    return {tensor({1}, DType::f64, {number_of(got.loss_sum)}), got.log_sum_exp_T2, d};
  });
}

}  // namespace
}  // namespace phalanx::test
