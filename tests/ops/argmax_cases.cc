// Greedy choice against a search, and what goes on from it.
#include "phalanx/ops/argmax.h"

#include <algorithm>
#include <limits>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Numbers = std::vector<int32_t>;

Numbers numbers(const Tensor& t) {
  const Tensor host = t.to(kCpu);
  const auto span = host.span<const int32_t>();
  return {span.begin(), span.end()};
}

Numbers chosen_of(const Tensor& x) {
  const Tensor chosen = Tensor::empty({x.rows()}, DType::i32, x.device());
  argmax_into(chosen, x);
  return numbers(chosen);
}

TEST_P(Argmax, IsTheFirstOfTheLargest) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const int64_t width : {1, 2, 31, 513, 16384, 16385, 50001}) {
    for (const DType dtype : kFloats) {
      // Whole numbers, so that there are ties.
      const Tensor x = random.tensor({3, width}, DType::f64, 3);
      for (double& v : x.span<double>()) v = std::round(v);
      x.data<double>()[random.integer(0, 3 * width - 1)] = kNan;
      x.data<double>()[random.integer(0, 3 * width - 1)] = -kInfinity;
      Numbers want;
      for (int64_t row = 0; row < 3; ++row) {
        const auto all = x.slice(row, row + 1).span<const double>();
        int32_t best = 0;
        for (size_t i = 1; i < all.size(); ++i) {
          const double now = all[static_cast<size_t>(best)];
          if (all[i] > now || (std::isnan(now) && !std::isnan(all[i]))) best = static_cast<int32_t>(i);
        }
        want.push_back(best);
      }
      EXPECT_EQ(chosen_of(here(tensor(x.shape(), dtype, values(x)))), want) << width;
    }
  }
}

TEST_P(Argmax, OfOddRows) {
  const Tensor x = tensor({5, 3}, DType::f32,
                          {kNan, kNan, kNan,              //
                           -kInfinity, -kInfinity, kNan,  //
                           kNan, -kInfinity, -kInfinity,  //
                           kInfinity, kInfinity, 1,       //
                           -2, -1, -1});
  EXPECT_EQ(chosen_of(here(x)), (Numbers{0, 0, 1, 0, 1}));
  EXPECT_EQ(chosen_of(here(Tensor::empty({0, 3}, DType::f32))), Numbers());
}

TEST_P(Argmax, TextsGoOnWithWhatWasChosen) {
  const DecodeRows rows = {copy_here(indices({5, 6})), copy_here(indices({0, 2})),
                           copy_here(indices({5, 0, 0, 0, 1, 2, 6, 0}).view({2, 4}))};
  advance_into(rows, here(indices({8, 9})));
  EXPECT_EQ(numbers(rows.tokens), (Numbers{8, 9}));
  EXPECT_EQ(numbers(rows.positions), (Numbers{1, 3}));
  EXPECT_EQ(numbers(rows.text_BC), (Numbers{5, 8, 0, 0, 1, 2, 6, 9}));
  expect_refused([&] { advance_into(rows, here(indices({1, 1}))); });  // the second text is full
}

}  // namespace
}  // namespace phalanx::test
