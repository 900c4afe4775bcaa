#include "phalanx/ops/cast.h"

#include <cmath>
#include <limits>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

// Half way between two neighbours of bf16, which have 2⁻⁷ between them from 1 to 2.
constexpr double kTie = 1 + 1.0 / 256;

TEST_P(Cast, RoundsToNearestAndTiesToEven) {
  for (const DType dtype : kFloats) {
    const Tensor x = here(tensor({6}, dtype, {1, kTie, kTie + 1.0 / 128, -kTie, 1e-30, 3.0e38}));
    const Tensor y = here(Tensor::empty({6}, DType::bf16));
    narrow_into(y, x);
    const Tensor back = here(Tensor::empty({6}, dtype));
    widen_into(back, y);
    const Values got = values(back);
    EXPECT_EQ(got[0], 1);
    EXPECT_EQ(got[1], 1);
    EXPECT_EQ(got[2], 1 + 1.0 / 64);
    EXPECT_EQ(got[3], -1);
    EXPECT_NEAR(got[4], 1e-30, 1e-30 / 256);
    EXPECT_NEAR(got[5], 3.0e38, 3.0e38 / 256);
  }
}

TEST_P(Cast, IsExactForWhatBf16Holds) {
  const Tensor all = Tensor::empty({1 << 16}, DType::bf16);
  for (int i = 0; i < 1 << 16; ++i) all.data<bf16>()[i].bits = static_cast<uint16_t>(i);
  for (const DType dtype : kFloats) {
    const Tensor wide = here(Tensor::empty({1 << 16}, dtype));
    widen_into(wide, here(all));
    const Tensor narrowed = here(Tensor::empty({1 << 16}, DType::bf16));
    narrow_into(narrowed, wide);
    const Tensor back = narrowed.to(kCpu);
    for (int i = 0; i < 1 << 16; ++i) {
      const float value = all.data<bf16>()[i].to_float();
      const float again = back.data<bf16>()[i].to_float();
      EXPECT_TRUE(std::isnan(value) ? std::isnan(again) : value == again) << i;
    }
  }
}

TEST_P(Cast, RefusesOtherShapesAndDtypes) {
  const Tensor x = here(Tensor::zeros({3}, DType::f32));
  EXPECT_THROW(narrow_into(here(Tensor::empty({4}, DType::bf16)), x), BrokenPromise);
  EXPECT_THROW(narrow_into(here(Tensor::empty({3}, DType::f32)), x), BrokenPromise);
  EXPECT_THROW(widen_into(x, here(Tensor::empty({3}, DType::f16))), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
