// The router's product against plain sums; a row's bits are its own.
#include "phalanx/ops/route.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

TEST_P(RouterLogits, AreTheProducts) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const auto& [rows, width, experts] :
         {std::array<int64_t, 3>{0, 3, 2}, {1, 1, 1}, {5, 7, 3}, {33, 64, 8}, {40, 131, 6}, {67, 30, 130}}) {
      const Tensor x = random.tensor({rows, width}, dtype);
      const Tensor w = random.tensor({experts, width}, dtype);
      const Values xv = values(x);
      const Values wv = values(w);
      Values want;
      for (int64_t i = 0; i < rows * experts; ++i) {
        double sum = 0;
        for (int64_t d = 0; d < width; ++d) {
          sum += xv[static_cast<size_t>(i / experts * width + d)] *
                 wv[static_cast<size_t>(i % experts * width + d)];
        }
        want.push_back(sum);
      }
      for_each_target_here([&](bool) {
        const double size = std::sqrt(static_cast<double>(width));
        expect_close(values(router_logits(here(x), here(w))), want, within(32, dtype, 4 * size), "logits");
      });
    }
  }
}

TEST_P(RouterLogits, ARowHasTheSameBitsInAnyCompany) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = here(random.tensor({70, 133}, DType::f32));
  const Tensor w = here(random.tensor({11, 133}, DType::f32));
  for_each_target_here([&](bool) {
    const Tensor all = router_logits(x, w);
    for (int64_t begin = 0; begin < 70;) {
      const int64_t end = std::min<int64_t>(70, begin + random.integer(1, 19));
      EXPECT_TRUE(same_bits(copy(all.slice(begin, end)), router_logits(copy(x.slice(begin, end)), w)));
      begin = end;
    }
  });
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> { return {router_logits(x, w)}; });
}

}  // namespace
}  // namespace phalanx::test
