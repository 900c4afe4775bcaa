// What only a GPU has to show of experts' FP8 products: products of whole numbers, which are exact in any
// order and so have the bits of those in f32, at sizes with many tiles; and columns with the CPU's bits.
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/fp8_grouped.h"
#include "tests/ops/fp8_on_gpu.h"
#include "tests/ops/fp8_reference.h"
#include "tests/ops/grouped_case.h"

namespace phalanx::test {
namespace {

using Case = GroupedCase;

// A pair of blocks has 256 rows and columns, or 128 rows; an H100 has 66 pairs. A ring has 3 or 4 stages.
std::vector<Case> cases(Random& random) {
  return {{{1}, 8, 16},
          {{1000}, 520, 336, 0, 24},
          {{5, 0, 130, 1, 64, 129}, 264, 80, 3, 60},
          {{0, 200, 0, 3, 0}, 136, 208, 0, 7},
          {{0, 0, 0}, 64, 128, 0, 5},
          {{128, 256, 384}, 512, 256},
          {{65, 63, 257}, 1400, 64, 1, 1},
          {{77, 300, 3}, 131, 144, 0, 9},  // single elements are stored
          {{140, 60}, 100, 1040, 0, 9},    // 16 bytes of f32, not of bf16
          {random_sizes(random, 64, 70), 72, 144, 0, 11},
          {random_sizes(random, 8, 700), 1032, 528, 0, 100},
          {random_sizes(random, 256, 9), 40, 32},
          {random_sizes(random, 24, 600), 768, 1536, 5, 40}};
}

std::string name(const Case& c) { return format("offsets {}, n {}, k {}", c.offsets(), c.n, c.k); }

class Fp8GroupedOnGpu : public WholeFp8OnGpu {
 protected:
  static Tensor offsets_of(const Case& c) { return indices64({c.experts() + 1}, c.offsets()).to(kGpu); }
  static Tensor live_of(const Case& c) { return indices64({1}, {c.offsets().back()}).to(kGpu); }

  static Tensor block_values(const Fp8Blocks& x) {
    const Tensor t = Tensor::empty(x.q_NK.shape(), DType::f32);
    for (int64_t i = 0; i < t.numel(); ++i) {
      const int64_t k = i % t.dim(2);
      const int64_t n = i / t.dim(2) % t.dim(1);
      const int64_t e = i / t.dim(2) / t.dim(1);
      t.data<float>()[i] =
          x.q_NK.data<f8e4m3>()[i].to_float() *
          x.scales.data<float>()[(e * x.scales.dim(1) + n / 128) * x.scales.dim(2) + k / 128];
    }
    return t;
  }

  // Columns by expert of whole numbers, and the rows that have these columns.
  struct Columns {
    Fp8Lines lines;
    Rows rows;
  };
  Columns columns(const Case& c, int64_t width) {
    const int64_t stored = fp8_columns_capacity(c.capacity(), c.experts());
    const Fp8Lines lines = {whole_numbers({width, stored}), powers(padded_scales(stored / 128, width)),
                            ScaleFormat::ue8m0};
    const Tensor values = line_values(lines, stored);
    const Tensor x = Tensor::zeros({c.capacity(), width}, DType::f32);
    int64_t term = 0;
    int64_t row = c.before;
    for (const int64_t size : c.sizes) {
      const int64_t end = (term + size + 127) / 128 * 128;
      for (int64_t d = 0; d < width; ++d) {
        for (int64_t t = 0; t < size; ++t)
          x.data<float>()[(row + t) * width + d] = values.data<float>()[d * stored + term + t];
        for (int64_t t = term + size; t < end; ++t) lines.q_RK.data<f8e4m3>()[d * stored + t] = {};
      }
      term = end;
      row += size;
    }
    return {on_gpu(lines), {x.to(kGpu), live_of(c)}};
  }
  // Whole numbers.
  Tensor start(const Shape& shape) {
    const Tensor t = Tensor::empty(shape, DType::f32);
    for (float& v : t.span<float>()) v = static_cast<float>(random_.integer(-99, 99));
    return t;
  }
};

TEST_F(Fp8GroupedOnGpu, RowsTimesWeightsOfWholeNumbersAreExact) {
  for (const Case& c : cases(random_)) {
    SCOPED_TRACE(name(c));
    const Fp8Lines x = {whole_numbers({c.capacity(), c.k}),
                        powers(padded_scales(scale_groups(c.k), c.capacity())), ScaleFormat::ue8m0};
    const Fp8Blocks w = {whole_numbers({c.experts(), c.n, c.k}),
                         powers({c.experts(), scale_groups(c.n), scale_groups(c.k)})};
    const Tensor live = live_of(c);
    const Rows values = {line_values(x, c.k).to(kGpu), live};
    const Rows want = grouped_matmul_nt(values, block_values(w).to(kGpu), offsets_of(c));
    const Fp8Blocks blocks = on_gpu(w);
    const std::vector<int64_t> o = c.offsets();
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Rows y = fp8_grouped_matmul_nt({on_gpu(x), live}, blocks, offsets_of(c), dtype);
      const Tensor exact = dtype == DType::bf16 ? narrow(want.data) : want.data;
      EXPECT_EQ(
          first_difference(y.data.slice(o.front(), o.back()), exact.slice(o.front(), o.back()).to(kCpu)), "")
          << dtype_name(dtype);
    }
  }
}

TEST_F(Fp8GroupedOnGpu, WeightGradientsOfWholeNumbersAreExact) {
  for (const Case& c : cases(random_)) {
    SCOPED_TRACE(name(c));
    const Columns dy = columns(c, c.n);
    const Columns x = columns(c, c.k);
    const Shape shape = {c.experts(), c.n, c.k};
    const Tensor before = start(shape);
    const Shape flat = {shape[0] * shape[1], shape[2]};
    for (const Into into : {Into::replace, Into::add}) {
      const Tensor want = copied(before.to(kGpu));
      grouped_matmul_tn_into(want, dy.rows, x.rows, offsets_of(c), into);
      for (const DType dtype : {DType::f32, DType::bf16}) {
        SCOPED_TRACE(format("{} {}", into == Into::add ? "added to" : "into", dtype_name(dtype)));
        const bool narrowed = dtype == DType::bf16;
        const Tensor dw = copied(narrowed ? narrow(before) : before.to(kGpu));
        fp8_grouped_matmul_tn_into(dw, dy.lines, x.lines, offsets_of(c), into);
        EXPECT_EQ(first_difference(dw.view(flat), (narrowed ? narrow(want) : want).view(flat).to(kCpu)), "");
      }
    }
  }
}

TEST_F(Fp8GroupedOnGpu, ColumnsOfManyRowsGetTheBitsOfTheCpu) {
  const Case c = {random_sizes(random_, 40, 200), 0, 1032, 3, 70};
  const Tensor x = narrow(scattered(random_, {c.capacity(), c.k}, DType::f32));
  const Rows rows = {x, live_of(c)};
  const Rows on_cpu = {x.to(kCpu), rows.live.to(kCpu)};
  const Tensor offsets = offsets_of(c);
  const Tensor offsets_on_cpu = offsets.to(kCpu);
  int64_t terms = 0;
  for (const int64_t size : c.sizes) terms += (size + 127) / 128 * 128;
  const auto expect_same = [&](const Fp8Lines& got, const Fp8Lines& want, const char* what) {
    SCOPED_TRACE(what);
    const Tensor q = got.q_RK.to(kCpu);
    for (int64_t i = 0; i < q.numel(); ++i) {
      if (i % q.dim(1) >= terms) continue;
      ASSERT_EQ(q.data<f8e4m3>()[i].bits, want.q_RK.data<f8e4m3>()[i].bits)
          << "line " << i / q.dim(1) << ", term " << i % q.dim(1);
    }
    EXPECT_EQ(first_difference(got.scales_SR.slice(0, terms / 128), want.scales_SR.slice(0, terms / 128)),
              "");
  };
  const auto got = fp8_grouped_rows_and_columns(rows, offsets, ScaleFormat::ue8m0);
  const auto want = fp8_grouped_rows_and_columns(on_cpu, offsets_on_cpu, ScaleFormat::ue8m0);
  expect_same(got.columns, want.columns, "columns");
  expect_same(fp8_grouped_columns(got.rows, offsets), fp8_grouped_columns(want.rows, offsets_on_cpu),
              "columns of rows");
}

// Whatever the others have, an expert's results are those that it gets alone; and each time the same.
TEST_F(Fp8GroupedOnGpu, AnExpertsBitsAreItsOwn) {
  const Case c = {{70, 0, 300, 129, 1, 64, 900}, 264, 144, 0, 50};
  const Tensor offsets = offsets_of(c);
  const Fp8Rows x = fp8_rows(Rows{draw({c.capacity(), c.k}), live_of(c)}, ScaleFormat::ue8m0);
  const Rows dy = {draw({c.capacity(), c.n}), live_of(c)};
  const Fp8Blocks w =
      fp8_blocks(draw({c.experts() * c.n, c.k}).view({c.experts(), c.n, c.k}), ScaleFormat::f32);
  const Tensor dw = Tensor::empty(w.q_NK.shape(), DType::f32, kGpu);
  const auto gradient = [&](const Tensor& into, const Rows& dy_rows, const Fp8Rows& x_rows, const Tensor& o) {
    fp8_grouped_matmul_tn_into(into, fp8_grouped_columns(dy_rows, o, ScaleFormat::f32),
                               fp8_grouped_columns(x_rows, o), o, Into::replace);
  };
  const Rows y = fp8_grouped_matmul_nt(x, w, offsets, DType::bf16);
  gradient(dw, dy, x, offsets);
  const std::vector<int64_t> o = c.offsets();
  for (int64_t e = 0; e < c.experts(); ++e) {
    SCOPED_TRACE(format("expert {}", e));
    const int64_t begin = o[static_cast<size_t>(e)];
    const int64_t end = o[static_cast<size_t>(e) + 1];
    const Tensor alone = indices64({2}, {begin, end}).to(kGpu);
    const Fp8Blocks we = {w.q_NK.slice(e, e + 1), copied(w.scales.slice(e, e + 1))};
    const Rows ye = fp8_grouped_matmul_nt(x, we, alone, DType::bf16);
    EXPECT_TRUE(same_bits(y.data.slice(begin, end), ye.data.slice(begin, end)));
    const Tensor dwe = Tensor::empty(we.q_NK.shape(), DType::f32, kGpu);
    gradient(dwe, dy, x, alone);
    EXPECT_TRUE(same_bits(dw.slice(e, e + 1), dwe));
  }
}

TEST_F(Fp8GroupedOnGpu, RefusesWhatTheKernelCannotTake) {
  const auto product = [&](int64_t experts, int64_t k) {
    const Fp8Rows x = fp8_rows(all_rows(draw({4, k})), ScaleFormat::f32);
    const Fp8Blocks w = fp8_blocks(draw({experts * 8, k}).view({experts, 8, k}), ScaleFormat::f32);
    const Tensor offsets = Tensor::zeros({experts + 1}, DType::i64, kGpu);
    (void)fp8_grouped_matmul_nt(x, w, offsets, DType::bf16);
  };
  EXPECT_NO_THROW(product(256, 16));
  EXPECT_THROW(product(257, 16), Error);
  EXPECT_THROW(product(2, 24), Error);
}

}  // namespace
}  // namespace phalanx::test
