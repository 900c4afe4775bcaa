// FP8 products against their definition in f64, within the error that their arithmetic may make.
#include "phalanx/ops/fp8_matmul.h"

#include <algorithm>
#include <cmath>

#include "tests/ops/fp8_product_reference.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

struct Case {
  int64_t m, n, k;
};

// Tiles are 128 or 256 rows by 128 columns, in pairs across; groups have 128 terms, K whole 16.
constexpr Case kCases[] = {{1, 1, 16},      {5, 7, 48},      {64, 136, 400},  {128, 128, 128},
                           {129, 257, 272}, {300, 520, 528}, {257, 72, 1040}, {33, 300, 16},
                           {3, 5, 0},       {0, 8, 32},      {8, 0, 32}};

// All results and ways to store them.
template <class B>
void expect_products(Random& random, const Case& c, const Fp8Lines& a, const B& b) {
  const std::vector<Fp8Sum> want = fp8_product_reference(fp8_factor(a), fp8_factor(b));
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Into into : {Into::replace, Into::add}) {
      SCOPED_TRACE(format("{} {}", into == Into::add ? "added to" : "into", dtype_name(dtype)));
      const Tensor before = rounded_on_host(random.tensor({c.m, c.n}, DType::f32), dtype);
      const Tensor y = copy_here(before);
      fp8_matmul_nt_into(y, a, b, into);
      Values old(want.size(), 0);
      if (into == Into::add) old = values(dtype == DType::bf16 ? wide_on_host(before) : before);
      expect_fp8_product(y, want, old);
    }
  }
}

TEST_P(Fp8Product, OfBlocksIsTheDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : kCases) {
    SCOPED_TRACE(format("{}×{}×{}", c.m, c.n, c.k));
    const Fp8Lines a = fp8_rows(here(uneven_groups(random, c.m, c.k)), ScaleFormat::f32);
    const Fp8Blocks b = fp8_blocks(here(uneven_groups(random, c.n, c.k)), ScaleFormat::f32);
    expect_products(random, c, a, b);
  }
}

TEST_P(Fp8Product, OfLinesIsTheDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : kCases) {
    const int64_t tokens = c.k == 0 ? 0 : c.k - 3;  // columns are filled up with zeros
    SCOPED_TRACE(format("{}×{}×{}", c.m, c.n, tokens));
    const Fp8Lines a = fp8_columns(here(uneven_groups(random, tokens, c.m)), ScaleFormat::f32);
    const Fp8Lines b = fp8_columns(here(uneven_groups(random, tokens, c.n)), ScaleFormat::ue8m0);
    expect_products(random, c, a, b);
  }
}

// The three products of a linear layer are those of what was quantised, as far as four bits go: a relative
// error of 2^-4 at most in each factor, of sums of as many terms without a sign in common.
TEST_P(Fp8Product, OfALinearLayerAreNearThoseOfF32) {
  Random random;
  SCOPED_TRACE(random.trace());
  constexpr int64_t kTokens = 144;
  constexpr int64_t kIn = 272;
  constexpr int64_t kOut = 160;
  const Tensor x = here(random.tensor({kTokens, kIn}, DType::f32));
  const Tensor dy = here(random.tensor({kTokens, kOut}, DType::f32));
  const Tensor w = here(random.tensor({kOut, kIn}, DType::f32));
  const auto expect_near = [](const Tensor& got, const Tensor& want, int64_t terms, const char* what) {
    const Values g = values(got);
    const Values v = values(want);
    double wrong = 0;
    for (size_t i = 0; i < g.size(); ++i) wrong += (g[i] - v[i]) * (g[i] - v[i]);
    const double deviation = std::sqrt(wrong / static_cast<double>(g.size() * static_cast<size_t>(terms)));
    EXPECT_LT(deviation, 0.06) << what;  // of products whose deviation is 1
    EXPECT_GT(deviation, 0.005) << what << " is not in FP8";
  };
  const Fp8Lines x_rows = fp8_rows(x, ScaleFormat::ue8m0);
  const Fp8RowsAndColumns dys = fp8_rows_and_columns(dy, ScaleFormat::f32);
  const Fp8Blocks w_blocks = fp8_blocks(w, ScaleFormat::f32);
  const Tensor y = here(Tensor::empty({kTokens, kOut}, DType::f32));
  fp8_matmul_nt_into(y, x_rows, w_blocks, Into::replace);
  expect_near(y, matmul_nt(x, w), kIn, "y");
  const Tensor dx = here(Tensor::empty({kTokens, kIn}, DType::f32));
  fp8_matmul_nt_into(dx, dys.rows, fp8_transposed(w_blocks), Into::replace);
  expect_near(dx, matmul(dy, w), kOut, "dx");
  const Tensor dw = here(Tensor::empty({kOut, kIn}, DType::f32));
  const Tensor want = here(Tensor::zeros({kOut, kIn}, DType::f32));
  fp8_matmul_nt_into(dw, dys.columns, fp8_columns(x_rows), Into::replace);
  matmul_tn_into(want, dy, x);
  expect_near(dw, want, kTokens, "dw");
}

TEST_P(Fp8Product, RefusesWhatDoesNotFit) {
  const Fp8Lines a = fp8_rows(here(Tensor::zeros({4, 32}, DType::f32)), ScaleFormat::f32);
  const Fp8Blocks b = fp8_blocks(here(Tensor::zeros({8, 32}, DType::f32)), ScaleFormat::f32);
  const auto into = [](int64_t m, int64_t n, DType dtype) { return here(Tensor::zeros({m, n}, dtype)); };
  EXPECT_THROW(fp8_matmul_nt_into(into(4, 7, DType::f32), a, b, Into::add), BrokenPromise);
  EXPECT_THROW(fp8_matmul_nt_into(into(8, 8, DType::f32), a, b, Into::add), BrokenPromise);
  EXPECT_THROW(fp8_matmul_nt_into(into(4, 8, DType::f64), a, b, Into::add), BrokenPromise);
  Fp8Lines wrong = a;
  wrong.scales_SR = here(Tensor::zeros({2, 4}, DType::f32));
  EXPECT_THROW(fp8_matmul_nt_into(into(4, 8, DType::f32), wrong, b, Into::add), BrokenPromise);
  EXPECT_THROW(fp8_matmul_nt_into(into(4, 4, DType::f32), a, wrong, Into::add), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
