#include "phalanx/ops/dropout.h"

#include <algorithm>
#include <numeric>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

DropoutSite random_site(Random& random, double rate) {
  const auto seed = static_cast<uint64_t>(random.integer(0, 1 << 30));
  // Steps beyond 32 bits, so that every word of the counter counts.
  const auto step = static_cast<uint64_t>(random.integer(0, int64_t{1} << 40));
  return {RandomStream(seed, "layers.3.mlp"), step, rate};
}

TEST_P(Dropout, DrawsAsTheStreamDoes) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Shape& shape :
         {Shape{0, 3}, Shape{1, 1}, Shape{3, 5}, Shape{7, 65}, Shape{4, 128}, Shape{3, 2503}}) {
      SCOPED_TRACE(format("{} {}", shape, dtype_name(dtype)));
      const DropoutSite site = random_site(random, random.uniform(0, 0.9));
      const Tensor x = random.tensor(shape, dtype);
      std::vector<int64_t> row(static_cast<size_t>(shape[0]));
      for (int64_t& r : row) r = random.integer(0, int64_t{1} << 45);
      Values want = values(x);
      for (size_t i = 0; i < want.size(); ++i) {
        const auto width = static_cast<uint64_t>(shape[1]);
        const auto index = static_cast<uint64_t>(row[i / width]) * width + i % width;
        const bool dropped = site.stream.bits(index, site.step) < dropout_threshold(site.rate);
        want[i] = dropped ? 0 : want[i] / (1 - site.rate);
      }
      for_each_target_here([&](bool) {
        const Tensor rows = here(indices64({shape[0]}, row));
        const Tensor y = dropout(here(x), rows, site);
        expect_close(values(y), want, within(2, dtype), "y");
        EXPECT_TRUE(same_bits(y, dropout_backward(here(x), rows, site)));
      });
    }
  }
}

TEST_P(Dropout, RateZeroKeepsAll) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = random.tensor({5, 33}, DType::f32);
  const Tensor rows = here(indices64({5}, {0, 1, 2, 3, 4}));
  EXPECT_TRUE(same_bits(dropout(here(x), rows, random_site(random, 0)), x));
}

TEST_P(Dropout, DropsAtItsRate) {
  Random random;
  SCOPED_TRACE(random.trace());
  constexpr int64_t kRows = 1000;
  const Tensor x = tensor({kRows, 100}, DType::f32, Values(kRows * 100, 1));
  std::vector<int64_t> row(kRows);
  std::iota(row.begin(), row.end(), 0);
  const Values y = values(dropout(here(x), here(indices64({kRows}, row)), random_site(random, 0.3)));
  const double zeros = static_cast<double>(std::ranges::count(y, 0.0)) / static_cast<double>(y.size());
  EXPECT_NEAR(zeros, 0.3, 6 * std::sqrt(0.3 * 0.7 / static_cast<double>(y.size())));
}

// The same rows give the same numbers, wherever a layout puts them.
TEST_P(Dropout, DoesNotDependOnTheLayout) {
  Random random;
  SCOPED_TRACE(random.trace());
  const DropoutSite site = random_site(random, 0.5);
  const Tensor x = random.tensor({6, 37}, DType::f32);
  const Tensor whole = dropout(here(x), here(indices64({6}, {0, 1, 2, 3, 4, 5})), site);
  const Tensor part = dropout(here(x.slice(4, 6)), here(indices64({2}, {4, 5})), site);
  EXPECT_TRUE(same_bits(part, whole.slice(4, 6)));
}

TEST_P(Dropout, RefusesRatesOutsideTheRange) {
  const Tensor x = here(tensor({1, 1}, DType::f32, {1}));
  for (const double rate : {-0.1, 1.0, std::nan("")}) {
    EXPECT_THROW(dropout(x, here(indices64({1}, {0})), {RandomStream(1, "x"), 0, rate}), BrokenPromise);
  }
}

TEST_P(Dropout, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const DropoutSite site = random_site(random, 0.5);
  const Tensor x = random.tensor({300, 67}, DType::f32);
  std::vector<int64_t> row(300);
  std::iota(row.begin(), row.end(), 7);
  expect_same_bits_for_any_threads(
      [&]() -> std::vector<Tensor> { return {dropout(here(x), here(indices64({300}, row)), site)}; });
}

}  // namespace
}  // namespace phalanx::test
