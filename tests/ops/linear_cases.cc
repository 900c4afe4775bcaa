#include "phalanx/ops/bias.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/gelu_linear.h"
#include "phalanx/ops/linears.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/swiglu_linear.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

struct Sizes {
  int64_t m, n, k;
};

constexpr Sizes kSizes[] = {{1, 1, 1}, {3, 5, 7}, {33, 64, 130}, {65, 128, 8}, {0, 5, 7}, {3, 5, 0}};

// What is fused is what its parts make one after the other.
void expect_sums(Random& random, Sizes s, DType dtype) {
  SCOPED_TRACE(format("{}×{}×{} {}", s.m, s.n, s.k, dtype_name(dtype)));
  const Tensor x = here(random.tensor({s.m, s.k}, dtype));
  const Tensor w = here(random.tensor({s.n, s.k}, dtype));
  const Tensor b = here(random.tensor({s.n}, dtype));
  const Tensor also = here(random.tensor({s.m, s.n}, dtype));
  const Tensor product = matmul_nt(x, w);
  const Tolerance close = within(8, dtype, 4 + std::sqrt(static_cast<double>(s.k)));
  for (const bool has_bias : {false, true}) {
    for (const bool has_also : {false, true}) {
      const Tensor y = copy_here(also);
      linear_into(y, x, w, has_bias ? b : Tensor(), has_also ? also : Tensor());
      const Tensor want = copy_here(product);
      if (has_bias) add_bias_into(want, b);
      if (has_also) add_into(want, also);
      expect_close(values(y), values(want), close, "y");
    }
  }
}

TEST_P(LinearProduct, AddsABiasAndWhatElseThereIs) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Sizes s : kSizes) expect_sums(random, s, dtype);
  }
}

TEST_P(LinearProduct, NormsRowsFirst) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Sizes s : {Sizes{1, 6, 5}, {3, 8, 16}, {40, 34, 130}, {0, 4, 7}}) {
      const Tensor x = here(random.tensor({s.m, s.k}, dtype, 3));
      const Tensor w = here(random.tensor({s.n, s.k}, dtype));
      const RowNorm norm = {here(random.tensor({s.k}, dtype)), 1e-5};
      const auto empty = [&] { return copy_here(Tensor::zeros({s.m, s.n}, dtype)); };
      const std::vector<LinearOf> all = {{empty(), w, {}, {}},
                                         {empty(), w, {}, x.dim(1) == s.n ? x : Tensor()}};
      linears_into(x, all, norm);
      const Tensor normed = rmsnorm(x, norm.w_K, norm.eps).y_TD;
      for (const LinearOf& l : all) {
        const Tensor want = empty();
        linear_into(want, normed, w, {}, l.also_MN);
        EXPECT_TRUE(same_bits(l.y_MN.to(kCpu), want.to(kCpu)));
      }
      EXPECT_TRUE(same_bits(linear_swiglu(x, w, {}, norm).to(kCpu), linear_swiglu(normed, w, {}).to(kCpu)));
    }
  }
}

void expect_gelu(Random& random, Sizes s, DType dtype, Gelu kind) {
  SCOPED_TRACE(format("{}×{}×{} {}", s.m, s.n, s.k, dtype_name(dtype)));
  const Tensor x = here(random.tensor({s.m, s.k}, dtype));
  const Tensor w = here(random.tensor({s.n, s.k}, dtype));
  const Tensor b = random.integer(0, 1) == 0 ? Tensor() : here(random.tensor({s.n}, dtype));
  const Tolerance close = within(16, dtype, 4 + std::sqrt(static_cast<double>(s.k)));
  const GeluRows rows = {copy_here(Tensor::zeros({s.m, s.n}, dtype)),
                         copy_here(Tensor::zeros({s.m, s.n}, dtype))};
  linear_gelu_into(rows, x, w, b, kind);
  const Tensor h = copy_here(Tensor::zeros({s.m, s.n}, dtype));
  linear_into(h, x, w, b);
  expect_close(values(rows.h), values(h), close, "h");
  expect_close(values(rows.a), values(gelu(h, kind)), close, "a");

  const Tensor dy = here(random.tensor({s.m, s.k}, dtype));
  const Tensor w_down = here(random.tensor({s.k, s.n}, dtype));
  const Tensor dh = copy_here(h);
  matmul_gelu_backward_into(dh, dy, w_down, h, kind);
  expect_close(values(dh), values(gelu_backward(matmul(dy, w_down), h, kind)), close, "dh");
}

TEST_P(LinearProduct, MakesTheGeluOfItsResult) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Gelu kind : {Gelu::erf, Gelu::tanh}) {
      for (const Sizes s : kSizes) expect_gelu(random, s, dtype, kind);
    }
  }
}

}  // namespace
}  // namespace phalanx::test
