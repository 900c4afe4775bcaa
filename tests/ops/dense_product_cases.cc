#include "phalanx/ops/matmul.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

// op(a) [m, k] · op(b) [k, n]; transposed ones are stored [k, m] and [n, k]. `terms` is Σ |a·b| at its
// largest.
struct Reference {
  Values c;
  double terms = 0;
};

struct Sizes {
  size_t m, n, k;
};

Reference reference(const Values& a, const Values& b, Sizes s, bool transpose_a, bool transpose_b) {
  Reference out;
  for (size_t i = 0; i < s.m; ++i) {
    for (size_t j = 0; j < s.n; ++j) {
      double sum = 0;
      double terms = 0;
      for (size_t l = 0; l < s.k; ++l) {
        const double term =
            a[transpose_a ? l * s.m + i : i * s.k + l] * b[transpose_b ? j * s.k + l : l * s.n + j];
        sum += term;
        terms += std::abs(term);
      }
      out.c.push_back(sum);
      out.terms = std::max(out.terms, terms);
    }
  }
  return out;
}

Shape shape(size_t rows, size_t columns) {
  return {static_cast<int64_t>(rows), static_cast<int64_t>(columns)};
}

void expect_as_reference(Random& random, Sizes s, DType dtype) {
  SCOPED_TRACE(format("{}×{}×{} {}", s.m, s.n, s.k, dtype_name(dtype)));
  const Tensor x = random.tensor(shape(s.m, s.k), dtype);
  const Tensor w_kn = random.tensor(shape(s.k, s.n), dtype);
  const Tensor w_nk = random.tensor(shape(s.n, s.k), dtype);
  const Tensor dy = random.tensor(shape(s.m, s.n), dtype);
  const Tensor before = random.tensor(shape(s.n, s.k), dtype);
  const Reference nn = reference(values(x), values(w_kn), s, false, false);
  const Reference nt = reference(values(x), values(w_nk), s, false, true);
  const Reference tn = reference(values(dy), values(x), {s.n, s.k, s.m}, true, false);
  // Rounding errors of f32 sums, 1000 times smaller than those of inputs rounded to TF32.
  const auto close = [&](const Reference& want) { return within(4, dtype, 1 + want.terms); };
  expect_close(values(matmul(here(x), here(w_kn))), nn.c, close(nn), "nn");
  expect_close(values(matmul_nt(here(x), here(w_nk))), nt.c, close(nt), "nt");
  const Tensor dw = copy_here(before);
  matmul_tn_into(dw, here(dy), here(x));
  expect_close(values(dw), plus(values(before), tn.c), close(tn), "tn");
  matmul_tn_into(dw, here(dy), here(x), Into::replace);
  expect_close(values(dw), tn.c, close(tn), "tn in place of what was there");
  const Tensor y = copy_here(dy);
  matmul_into(y, here(x), here(w_kn));
  expect_close(values(y), plus(values(dy), nn.c), close(nn), "nn added");
  matmul_into(y, here(x), here(w_kn), Into::replace);
  expect_close(values(y), nn.c, close(nn), "nn in place of what was there");
  const Tensor z = copy_here(dy);
  matmul_nt_into(z, here(x), here(w_nk));
  expect_close(values(z), plus(values(dy), nt.c), close(nt), "nt added");
  matmul_nt_into(z, here(x), here(w_nk), Into::replace);
  expect_close(values(z), nt.c, close(nt), "nt in place of what was there");
}

TEST_P(DenseProduct, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Sizes s :
         {Sizes{1, 1, 1}, {3, 5, 7}, {64, 64, 64}, {33, 65, 130}, {128, 96, 256}, {1, 300, 77}}) {
      expect_as_reference(random, s, dtype);
    }
  }
}

TEST_P(DenseProduct, TakesSizesOfZero) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Sizes s : {Sizes{0, 5, 7}, {3, 0, 7}, {3, 5, 0}, {0, 0, 0}})
    expect_as_reference(random, s, DType::f32);
}

// Rows of any tensor are matrices too, wherever they begin.
TEST_P(DenseProduct, TakesSlices) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const int64_t k : {5, 8, 32}) {
    const Tensor x = random.tensor({9, k}, DType::f32);
    const Tensor w = random.tensor({11, k}, DType::f32);
    const Tensor part = matmul_nt(here(x).slice(1, 8), here(w).slice(3, 10));
    const Tensor apart = matmul_nt(copy_here(x.slice(1, 8)), copy_here(w.slice(3, 10)));
    EXPECT_TRUE(same_bits(part, apart)) << k;
  }
}

TEST_P(DenseProduct, GivesTheSameBitsEachTime) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = here(random.tensor({300, 515}, DType::f32));
  const Tensor w = here(random.tensor({200, 515}, DType::f32));
  const Tensor dy = here(random.tensor({300, 200}, DType::f32));
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Tensor dw = copy_here(Tensor::zeros({200, 515}, DType::f32));
    matmul_tn_into(dw, dy, x);
    return {matmul_nt(x, w), matmul(dy, w), dw};
  });
}

}  // namespace
}  // namespace phalanx::test
