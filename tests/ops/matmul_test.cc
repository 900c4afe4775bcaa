// Products beyond what dense_product_cases.cc shows: sizes that are cut into tiles or whose weights are
// transposed first, NaN, and threads that multiply at once.
#include "phalanx/ops/matmul.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>

#include "phalanx/ops/gemm.h"
#include "tests/ops/product_reference.h"

namespace phalanx::test {
namespace {

TEST(Matmul, EqualsTheDefinitionWhereItIsCut) {
  Random random;
  SCOPED_TRACE(random.trace());
  struct Sizes {
    int64_t m, n, k;
  };
  for (const Sizes s : {Sizes{517, 33, 130},
                        {191, 100, 70},
                        {192, 17, 300},
                        {40, 1030, 90},
                        {3, 2000, 400},
                        {140, 1201, 70},
                        {1100, 70, 130}}) {
    SCOPED_TRACE(format("{}×{}×{}", s.m, s.n, s.k));
    for (const DType dtype : kFloats) {
      const Tensor x = random.tensor({s.m, s.k}, dtype);
      const Tensor w_kn = random.tensor({s.k, s.n}, dtype);
      const Tensor w_nk = random.tensor({s.n, s.k}, dtype);
      const Tensor x_km = random.tensor({s.k, s.m}, dtype);
      const Tensor sum = random.tensor({s.m, s.n}, dtype);
      const Values before = values(sum);
      matmul_tn_into(sum, x_km, w_kn);
      expect_close(values(matmul(x, w_kn)), product_reference(Form::nn, x, w_kn), sums_of(s.k, dtype), "nn");
      expect_close(values(matmul_nt(x, w_nk)), product_reference(Form::nt, x, w_nk), sums_of(s.k, dtype),
                   "nt");
      expect_close(values(sum), plus(before, product_reference(Form::tn, x_km, w_kn)), sums_of(s.k, dtype),
                   "tn");
    }
  }
}

TEST(Matmul, TransposedWeightsAreTheSameOnEveryTarget) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const int64_t n : {1, 15, 16, 65, 200}) {
    const Tensor x = random.tensor({200, 37}, DType::f32);
    const Tensor w = random.tensor({n, 37}, DType::f32);
    const Values want = product_reference(Form::nt, x, w);
    for_each_target(
        [&](bool) { expect_close(values(matmul_nt(x, w)), want, sums_of(37, DType::f32), "nt"); });
  }
}

TEST(Matmul, BitsDoNotDependOnTheNumberOfThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    const Tensor x = random.tensor({517, 96}, dtype);
    const Tensor w = random.tensor({777, 96}, dtype);
    const Tensor offsets = indices64({4}, {0, 250, 255, 517});
    const Tensor experts = random.tensor({3, 120, 96}, dtype);
    expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
      const Tensor dw = Tensor::zeros({777, 96}, dtype);
      const Tensor dexperts = Tensor::zeros(experts.shape(), dtype);
      const Tensor y = matmul_nt(x, w);
      matmul_tn_into(dw, y, x);
      const Rows rows = grouped_matmul_nt(all_rows(x), experts, offsets);
      grouped_matmul_tn_into(dexperts, rows, all_rows(x), offsets);
      return {y,         matmul(y, w),
              dw,        matmul_nt(x.slice(0, 9), w),
              rows.data, grouped_matmul(rows, experts, offsets).data,
              dexperts};
    });
  }
}

// A NaN reaches its row and no other; 0 · ∞ is NaN; what was in the memory of a result before does not
// matter.
TEST(Matmul, NanAndInfinityPropagate) {
  Random random;
  SCOPED_TRACE(random.trace());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : kFloats) {
    for (const int64_t rows : {5, 300}) {
      const Tensor w = random.tensor({40, 24}, dtype);
      Values v = values(random.tensor({rows, 24}, dtype));
      v[2 * 24 + 7] = nan;
      v[3 * 24 + 1] = std::numeric_limits<double>::infinity();
      { const Tensor garbage = tensor({rows, 40}, dtype, Values(static_cast<size_t>(rows * 40), nan)); }
      const Values y = values(matmul_nt(tensor({rows, 24}, dtype, v), w));
      for (size_t i = 0; i < y.size(); ++i) {
        EXPECT_EQ(std::isnan(y[i]), i / 40 == 2) << i;
        EXPECT_EQ(std::isfinite(y[i]), i / 40 != 2 && i / 40 != 3) << i;
      }
      const Values zero = values(matmul_nt(tensor({rows, 24}, dtype, v), Tensor::zeros({40, 24}, dtype)));
      EXPECT_TRUE(std::isnan(zero[2 * 40]) && std::isnan(zero[3 * 40]));
    }
  }
}

// Ranks are threads, and none waits for another: libraries must bear that.
TEST(Matmul, ThreadsMayMultiplyAtOnce) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    const Tensor x = random.tensor({16, 16}, dtype);
    const Tensor w = random.tensor({16, 16}, dtype);
    const Tensor want = matmul_nt(x, w);
    std::atomic<int> wrong{0};
    std::vector<std::thread> ranks;
    for (int r = 0; r < 8; ++r) {
      ranks.emplace_back([&] {
        visit_float(dtype, [&](auto zero) {
          using T = decltype(zero);
          const Tensor y = Tensor::empty({16, 16}, dtype);
          const Gemm<T> product = {16,   16,          16, x.data<const T>(), 16, false, w.data<const T>(), 16,
                                   true, y.data<T>(), 16};
          for (int i = 0; i < 150000; ++i) {
            gemm(product);
            wrong += same_bits(y, want) ? 0 : 1;
          }
        });
      });
    }
    for (std::thread& t : ranks) t.join();
    EXPECT_EQ(wrong, 0) << dtype_name(dtype);
  }
}

TEST(Matmul, RefusesWhatDoesNotFit) {
  const Tensor a = Tensor::zeros({3, 4}, DType::f32);
  EXPECT_THROW(matmul(a, a), BrokenPromise);
  EXPECT_THROW(matmul_nt(a, Tensor::zeros({3, 5}, DType::f32)), BrokenPromise);
  EXPECT_THROW(matmul_nt(a, Tensor::zeros({3, 4}, DType::f64)), BrokenPromise);
  EXPECT_THROW(matmul_tn_into(a, a, a), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
