// Products beyond what dense_product_cases.cc shows: sizes that are cut into tiles or whose weights are
// transposed first, experts, NaN, and threads that multiply at once.
#include "phalanx/ops/matmul.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>

#include "phalanx/ops/gemm.h"
#include "tests/ops/reference.h"

namespace phalanx::test {
namespace {

enum class Form { nn, nt, tn };

// The definition, in f64, of c [m, n] = a · b.
Values reference(Form form, const Tensor& a, const Tensor& b) {
  const Values x = values(a);
  const Values y = values(b);
  const int64_t m = form == Form::tn ? a.dim(1) : a.dim(0);
  const int64_t n = form == Form::nt ? b.dim(0) : b.dim(1);
  const int64_t k = form == Form::tn ? a.dim(0) : a.dim(1);
  Values c(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += x[static_cast<size_t>(form == Form::tn ? l * m + i : i * k + l)] *
               y[static_cast<size_t>(form == Form::nt ? j * k + l : l * n + j)];
      }
      c[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return c;
}

// Sums of k products of normal numbers, rounded in any order.
Tolerance sums_of(int64_t k, DType dtype) { return within(4, dtype, 4 + static_cast<double>(k)); }

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
      expect_close(values(matmul(x, w_kn)), reference(Form::nn, x, w_kn), sums_of(s.k, dtype), "nn");
      expect_close(values(matmul_nt(x, w_nk)), reference(Form::nt, x, w_nk), sums_of(s.k, dtype), "nt");
      expect_close(values(sum), plus(before, reference(Form::tn, x_km, w_kn)), sums_of(s.k, dtype), "tn");
    }
  }
}

TEST(Matmul, TransposedWeightsAreTheSameOnEveryTarget) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const int64_t n : {1, 15, 16, 65, 200}) {
    const Tensor x = random.tensor({200, 37}, DType::f32);
    const Tensor w = random.tensor({n, 37}, DType::f32);
    const Values want = reference(Form::nt, x, w);
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

TEST(Matmul, GroupedProductsAreOneProductForEachExpert) {
  Random random;
  SCOPED_TRACE(random.trace());
  const std::vector<int64_t> o = {0, 5, 5, 240, 241, 241};  // experts without rows, and one with many
  const int64_t experts = 5;
  const int64_t k = 12;
  const int64_t n = 20;
  const ThreadScope threads(2);
  for (const DType dtype : kFloats) {
    Rows x = all_rows(random.tensor({250, k}, dtype));  // nine rows of capacity are not live
    x.live.data<int64_t>()[0] = o.back();
    const Tensor w = random.tensor({experts, n, k}, dtype);
    const Tensor offsets = indices64({experts + 1}, o);
    const Rows y = grouped_matmul_nt(x, w, offsets);
    const Rows dx = grouped_matmul(y, w, offsets);
    const Tensor dw = random.tensor(w.shape(), dtype);
    const Tensor before = copy(dw);
    grouped_matmul_tn_into(dw, y, x, offsets);
    for (int64_t e = 0; e < experts; ++e) {
      const auto begin = o[static_cast<size_t>(e)];
      const auto end = o[static_cast<size_t>(e) + 1];
      const auto matrix = [&](const Tensor& t) { return t.slice(e, e + 1).view({n, k}); };
      const Tensor xe = x.data.slice(begin, end);
      const Tensor ye = y.data.slice(begin, end);
      expect_close(values(ye), reference(Form::nt, xe, matrix(w)), sums_of(k, dtype), "y");
      expect_close(values(dx.data.slice(begin, end)), reference(Form::nn, ye, matrix(w)),
                   sums_of(10 * n, dtype), "dx");
      expect_close(values(matrix(dw)), plus(values(matrix(before)), reference(Form::tn, ye, xe)),
                   sums_of(10 * (end - begin), dtype), "dw");
      const Tensor fresh = random.tensor(w.shape(), dtype);
      grouped_matmul_tn_into(fresh, y, x, offsets, Into::replace);
      expect_close(values(matrix(fresh)), reference(Form::tn, ye, xe), sums_of(10 * (end - begin), dtype),
                   "dw in place of what was there");
    }
  }
}

TEST(Matmul, NoExpertsAndNoRows) {
  const Rows none = all_rows(Tensor::empty({0, 3}, DType::f32));
  EXPECT_EQ(grouped_matmul_nt(none, Tensor::zeros({0, 4, 3}, DType::f32), indices64({1}, {0})).capacity(), 0);
  EXPECT_EQ(grouped_matmul(none, Tensor::zeros({2, 3, 4}, DType::f32), indices64({3}, {0, 0, 0})).capacity(),
            0);
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
  const Tensor w = Tensor::zeros({2, 5, 4}, DType::f32);
  EXPECT_THROW(grouped_matmul_nt(all_rows(a), w, indices64({2}, {0, 3})), BrokenPromise);
  EXPECT_THROW(grouped_matmul_nt(all_rows(a), w, indices64({3}, {0, 2, 4})), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
