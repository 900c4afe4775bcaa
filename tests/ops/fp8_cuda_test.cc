// What only a GPU has to show of FP8: products of whole numbers, which are exact in any order and so have the
// bits of the product in f32, at sizes with many tiles; and large tensors quantised to the CPU's bits.
#include "phalanx/ops/fp8_matmul.h"

#include "phalanx/ops/elementwise.h"
#include "tests/ops/fp8_on_gpu.h"
#include "tests/ops/fp8_reference.h"

namespace phalanx::test {
namespace {

struct Case {
  int64_t m, n, k;
};

// A pair of blocks has 256 columns and 128 or 256 rows; an H100 has 66 pairs.
constexpr Case kCases[] = {
    {1, 8, 16},         // one wave, one column tile without a neighbour
    {64, 128, 128},     // the second warpgroup has nothing
    {65, 256, 128},     // one row of it
    {128, 256, 768},    // as many groups as stages
    {128, 256, 1024},   // more
    {200, 384, 400},    // the last pair has one tile
    {100, 100, 144},    // stores of pairs
    {131, 77, 272},     // stores of single elements
    {4096, 4096, 384},  // 256 rows, several rounds
    {3900, 4072, 912},  // the second warpgroup of the last tiles, and the first one's second wave, have
                        // nothing
    {4001, 4091, 144},
    {2400, 2400, 144},  // 128 rows, several rounds
    {24000, 136, 528},
    {70, 20000, 528},
};

class Fp8OnGpu : public WholeFp8OnGpu {
 protected:
  Fp8Lines lines(int64_t count, int64_t k) {
    return {whole_numbers({count, k}), powers(padded_scales(scale_groups(k), count)), ScaleFormat::ue8m0};
  }
  Fp8Blocks blocks(int64_t n, int64_t k) {
    return {whole_numbers({n, k}), powers({scale_groups(n), scale_groups(k)})};
  }

  static Tensor block_values(const Fp8Blocks& x) {
    const Tensor t = Tensor::empty(x.q_NK.shape(), DType::f32);
    const int64_t k = t.dim(1);
    for (int64_t i = 0; i < t.numel(); ++i) {
      t.data<float>()[i] = x.q_NK.data<f8e4m3>()[i].to_float() *
                           x.scales.data<float>()[i / k / 128 * x.scales.dim(1) + i % k / 128];
    }
    return t;
  }

  // The bits of a · b in f32, to which whole numbers may have been added.
  template <class B>
  void expect_exact(const Case& c, const Fp8Lines& a, const B& b, const Tensor& b_values) {
    const Tensor product = matmul_nt(line_values(a, c.k).to(kGpu), b_values.to(kGpu));
    const Tensor before = Tensor::empty({c.m, c.n}, DType::f32);
    for (float& v : before.span<float>()) v = static_cast<float>(random_.integer(-99, 99));
    const Tensor added = copied(product);
    add_into(added, before.to(kGpu));
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const Into into : {Into::replace, Into::add}) {
        SCOPED_TRACE(format("{} {}", into == Into::add ? "added to" : "into", dtype_name(dtype)));
        const bool narrowed = dtype == DType::bf16;
        const Tensor want = into == Into::add ? added : product;
        const Tensor y = copied(narrowed ? narrow(before) : before.to(kGpu));
        fp8_matmul_nt_into(y, on_gpu(a), on_gpu(b), into);
        EXPECT_EQ(first_difference(y, (narrowed ? narrow(want) : want).to(kCpu)), "");
      }
    }
  }
};

TEST_F(Fp8OnGpu, ProductsOfWholeNumbersAreExactWithScalesOfBlocks) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(format("{}×{}×{}", c.m, c.n, c.k));
    const Fp8Blocks b = blocks(c.n, c.k);
    expect_exact(c, lines(c.m, c.k), b, block_values(b));
  }
}

TEST_F(Fp8OnGpu, ProductsOfWholeNumbersAreExactWithScalesOfLines) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(format("{}×{}×{}", c.m, c.n, c.k));
    const Fp8Lines b = lines(c.n, c.k);
    expect_exact(c, lines(c.m, c.k), b, line_values(b, c.k));
  }
}

TEST_F(Fp8OnGpu, ProductsHaveTheSameBitsEachTime) {
  const Fp8Lines a = fp8_rows(draw({4096, 1040}), ScaleFormat::f32);
  const Fp8Blocks b = fp8_blocks(draw({4096, 1040}), ScaleFormat::f32);
  const Tensor first = zeros({4096, 4096}, DType::bf16);
  fp8_matmul_nt_into(first, a, b, Into::replace);
  for (int i = 0; i < 20; ++i) {
    const Tensor again = zeros({4096, 4096}, DType::bf16);
    fp8_matmul_nt_into(again, a, b, Into::replace);
    ASSERT_TRUE(same_bits(first, again)) << "run " << i;
  }
}

TEST_F(Fp8OnGpu, LargeTensorsGetTheBitsOfTheCpu) {
  for (const Shape& shape : {Shape{3000, 2056}, Shape{2047, 1001}}) {
    const Tensor x = narrow(scattered(random_, shape, DType::f32));
    const Tensor host = x.to(kCpu);
    for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::ue8m0}) {
      const auto expect_lines = [](const Fp8Lines& got, const Fp8Lines& want, const char* what) {
        EXPECT_EQ(first_difference(got.scales_SR, want.scales_SR), "") << what;
        EXPECT_EQ(first_difference(got.q_RK, want.q_RK), "") << what;
      };
      const Fp8RowsAndColumns got = fp8_rows_and_columns(x, format);
      const Fp8RowsAndColumns want = fp8_rows_and_columns(host, format);
      expect_lines(got.rows, want.rows, "rows");
      expect_lines(got.columns, want.columns, "columns");
      if (format == ScaleFormat::ue8m0)
        expect_lines(fp8_columns(got.rows), fp8_columns(want.rows), "columns of rows");
      const Quantized sent = quantize(x, format);
      const Quantized want_sent = quantize(host, format);
      EXPECT_EQ(first_difference(sent.q_TD, want_sent.q_TD), "");
      EXPECT_EQ(first_difference(sent.scales_TS, want_sent.scales_TS), "");
      const Fp8Blocks blocks = fp8_blocks(x, format);
      const Fp8Blocks want_blocks = fp8_blocks(host, format);
      EXPECT_EQ(first_difference(blocks.q_NK, want_blocks.q_NK), "");
      EXPECT_EQ(first_difference(blocks.scales, want_blocks.scales), "");
      const Fp8Blocks turned = fp8_blocks_transposed(x, format);
      const Fp8Blocks want_turned = fp8_blocks_transposed(host, format);
      EXPECT_EQ(first_difference(turned.q_NK, want_turned.q_NK), "");
      EXPECT_EQ(first_difference(turned.scales, want_turned.scales), "");
    }
  }
}

TEST_F(Fp8OnGpu, RefusesTermsThatTmaCannotRead) {
  const Fp8Lines a = fp8_rows(draw({4, 24}), ScaleFormat::f32);
  const Fp8Blocks b = fp8_blocks(draw({8, 24}), ScaleFormat::f32);
  EXPECT_THROW(fp8_matmul_nt_into(zeros({4, 8}), a, b, Into::replace), Error);
}

}  // namespace
}  // namespace phalanx::test
