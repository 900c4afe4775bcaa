// Products of few rows in bf16, and what else a launch of them computes.
#include "phalanx/ops/few_rows.h"

#include "phalanx/ops/at_rest.h"
#include "phalanx/ops/grouped_wgmma.h"
#include "phalanx/ops/linears.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/swiglu.h"
#include "phalanx/ops/swiglu_linear.h"
#include "tests/ops/bf16_on_gpu.h"

namespace phalanx::test {
namespace {

class FewRows : public Bf16OnGpu {
 protected:
  static Tensor like(int64_t m, int64_t n, DType dtype = DType::bf16) {
    return Tensor::empty({m, n}, dtype, kGpu);
  }
  static Tensor maybe_wide(const Tensor& t) { return t.defined() ? wide(t) : Tensor(); }
  // In f32, which goes to the library.
  static Tensor linear_in_f32(const Tensor& x, const LinearOf& l) {
    const Tensor y = like(x.rows(), l.w_NK.rows(), DType::f32);
    linear_into(y, wide(x), wide(l.w_NK), maybe_wide(l.b_N), maybe_wide(l.also_MN));
    return y;
  }
};

struct Sizes {
  int64_t m, n, k;
};
std::vector<Sizes> sizes(Random& random) {
  std::vector<Sizes> all = {{1, 1, 8},       {1, 16, 32},    {1, 17, 2048},    {2, 100, 264},
                            {7, 33, 8192},   {8, 2048, 64},  {9, 15, 1032},    {16, 48, 520},
                            {16, 3000, 256}, {3, 9000, 520}, {16, 5000, 2048}, {17, 128, 513 * 8},
                            {33, 129, 64},   {64, 257, 4096}};
  for (int i = 0; i < 10; ++i) {
    all.push_back({random.integer(1, 64), random.integer(1, 400), 8 * random.integer(1, 400)});
  }
  return all;
}

TEST_F(FewRows, IsTheProductOfF32Rounded) {
  for (const auto& [m, n, k] : sizes(random_)) {
    const Tensor x = draw({m, k});
    const double floor = std::sqrt(static_cast<double>(k)) / 10;
    for (const int form : {0, 1, 2, 3}) {
      const Tensor b = form & 1 ? draw({n}) : Tensor();
      const Tensor also = form & 2 ? draw({m, n}) : Tensor();
      const LinearOf l = {like(m, n), draw({n, k}), b, also};
      ASSERT_TRUE(cuda::multiply_few_rows(x, {&l, 1}));
      const std::string what = format("{} x {} x {}, form {}", m, n, k, form);
      const Tensor want = linear_in_f32(x, l);
      expect_near(l.y_MN, want, floor, what.c_str());
      // In f32, and as linear_into asks for it.
      const LinearOf f32 = {like(m, n, DType::f32), l.w_NK, b, also};
      ASSERT_TRUE(cuda::multiply_few_rows(x, {&f32, 1}));
      expect_close(values(f32.y_MN), values(want), within(100, DType::f32, 10 * floor), what);
      const Tensor y = like(m, n);
      linear_into(y, x, l.w_NK, b, also);
      EXPECT_TRUE(same_bits(y, l.y_MN)) << what;
    }
  }
}

TEST_F(FewRows, ALaunchComputesSeveral) {
  for (const auto& [m, n, k] : sizes(random_)) {
    const Tensor x = draw({m, k});
    const std::vector<LinearOf> all = {{like(m, n), draw({n, k}), draw({n}), {}},
                                       {like(m, 5), draw({5, k}), {}, draw({m, 5})},
                                       {like(m, n + 7), draw({n + 7, k}), {}, {}}};
    for (size_t count = 1; count <= all.size(); ++count) {
      for (const LinearOf& l : all) copy_into(l.y_MN, draw(l.y_MN.shape()));
      linears_into(x, std::span(all).first(count));
      for (size_t i = 0; i < count; ++i) {
        const Tensor alone = like(m, all[i].y_MN.dim(1));
        linear_into(alone, x, all[i].w_NK, all[i].b_N, all[i].also_MN);
        EXPECT_TRUE(same_bits(all[i].y_MN, alone)) << m << ", " << n << ", " << k << ", number " << i;
      }
    }
  }
}

TEST_F(FewRows, MakesASwiglu) {
  for (const auto& [m, f, k] : sizes(random_)) {
    const Tensor x = draw({m, k});
    const Tensor w = draw({2 * f, k}, 1 / std::sqrt(static_cast<double>(k)));
    for (const Tensor& b : {Tensor(), draw({2 * f})}) {
      const Tensor a = like(m, f);
      ASSERT_TRUE(cuda::multiply_few_rows_swiglu(a, x, w, b));
      const Tensor h = linear_in_f32(x, {{}, w, b, {}});
      const std::string what = format("{} x {} x {}", m, f, k);
      expect_near(a, swiglu(all_rows(h)).data, 1e-2, what.c_str());
      EXPECT_TRUE(same_bits(linear_swiglu(x, w, b), a)) << what;
    }
  }
}

// Many rows, by another kernel.
TEST_F(FewRows, ManyRowsMakeASwiglu) {
  std::vector<Sizes> all = {{1, 8, 8}, {129, 136, 72}, {256, 128, 2048}};
  for (int i = 0; i < 5; ++i) {
    all.push_back({random_.integer(1, 700), 8 * random_.integer(1, 60), 8 * random_.integer(1, 90)});
  }
  for (const auto& [m, f, k] : all) {
    const Tensor x = draw({m, k});
    const Tensor w = draw({2 * f, k}, 1 / std::sqrt(static_cast<double>(k)));
    const Tensor a = like(m, f);
    ASSERT_TRUE(cuda::wgmma_nt_swiglu(a, x, w));
    const Tensor want = swiglu(all_rows(linear_in_f32(x, {{}, w, {}, {}}))).data;
    const std::string what = format("{} x {} x {}", m, f, k);
    expect_near(a, want, 1e-2, what.c_str());
  }
  const Tensor x = draw({2100, 264});
  const Tensor w = draw({2 * 4232, 264}, 0.1);
  const Tensor a = like(2100, 4232);
  ASSERT_TRUE(cuda::wgmma_nt_swiglu(a, x, w));
  EXPECT_TRUE(same_bits(linear_swiglu(x, w, {}), a));
  EXPECT_FALSE(cuda::wgmma_nt_swiglu(like(3, 4), draw({3, 8}), draw({8, 8})));
  EXPECT_FALSE(cuda::wgmma_nt_swiglu(like(0, 8), draw({0, 8}), draw({16, 8})));
}

TEST_F(FewRows, NormsRowsFirst) {
  for (const auto& [m, n, k] : sizes(random_)) {
    const Tensor x = draw({m, k}, 5, 1);
    const RowNorm norm = {draw({k}, 0.5, 1), 1e-5};
    const Tensor normed = rmsnorm(x, norm.w_K, norm.eps).y_TD;
    const std::string what = format("{} x {} x {}", m, n, k);
    const std::vector<LinearOf> all = {{like(m, n), draw({n, k}), {}, {}},
                                       {like(m, n + 3), draw({n + 3, k}), draw({n + 3}), {}}};
    EXPECT_EQ(cuda::multiply_few_rows(x, all, norm), m <= cuda::kFewNormedRows) << what;
    linears_into(x, all, norm);
    for (const LinearOf& l : all) {
      expect_near(l.y_MN, linear_in_f32(normed, l), std::sqrt(static_cast<double>(k)) / 10, what.c_str());
    }
    const Tensor w = draw({2 * n, k}, 1 / std::sqrt(static_cast<double>(k)));
    const Tensor h = linear_in_f32(normed, {{}, w, {}, {}});
    expect_near(linear_swiglu(x, w, {}, norm), swiglu(all_rows(h)).data, 2e-2, what.c_str());
  }
}

TEST_F(FewRows, ARowHasTheSameBitsAmongOthers) {
  const Tensor x = draw({64, 1000});
  const Tensor w = draw({77, 1000});
  const Tensor all = matmul_nt(x, w);
  for (const int64_t rows : {1, 5, 8, 12, 16, 17, 32, 33, 63}) {
    EXPECT_TRUE(same_bits(matmul_nt(x.slice(64 - rows, 64), w), all.slice(64 - rows, 64))) << rows;
  }
}

// One product behind the other, so that each is launched before its x is there.
TEST_F(FewRows, FetchesWeightsAtRestAhead) {
  for (const int64_t rows : {1, 13, 40}) {
    const Tensor x = draw({rows, 512});
    std::vector<Tensor> weights;
    for (int i = 0; i < 40; ++i) weights.push_back(draw({512, 512}, 1 / std::sqrt(512.0)));
    current_stream().synchronise();
    const auto through_all = [&] {
      Tensor y = x;
      for (const Tensor& w : weights) y = matmul_nt(y, w);
      return y;
    };
    const Tensor want = through_all();
    const AtRest at_rest;
    EXPECT_TRUE(same_bits(through_all(), want)) << rows;
  }
}

// What it leaves to the library comes out, too.
TEST_F(FewRows, TakesNoOthers) {
  for (const auto& [m, n, k] : {Sizes{65, 8, 64}, {4, 8, 12}, {3, 8, 7}, {0, 8, 64}}) {
    const Tensor x = draw({m, k});
    const LinearOf l = {like(m, n), draw({n, k}), {}, {}};
    EXPECT_FALSE(cuda::multiply_few_rows(x, {&l, 1}));
    linears_into(x, {&l, 1});
    expect_near(l.y_MN, linear_in_f32(x, l), 1, "y");
  }
  const LinearOf f32 = {like(2, 8, DType::f32), zeros({8, 16}), {}, {}};
  EXPECT_FALSE(cuda::multiply_few_rows(zeros({2, 16}), {&f32, 1}));
}

}  // namespace
}  // namespace phalanx::test
