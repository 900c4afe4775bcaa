// Factors of FP8 products against the definition, element by element and bit for bit, at odd sizes.
#include "phalanx/ops/fp8.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/ops/fp8_reference.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

struct Size {
  int64_t rows, width;
};

// Tiles are 128 × 128; whole accesses need widths that are multiples of 8, whole lines of 16.
std::vector<Size> sizes(Random& random) {
  return {{0, 0},      {0, 5},
          {7, 0},      {1, 1},
          {3, 128},    {128, 128},
          {129, 256},  {16, 8},
          {257, 136},  {300, 20},
          {40, 1032},  {131, 131},
          {1000, 264}, {random.integer(1, 400), random.integer(1, 400)}};
}

constexpr ScaleFormat kFormats[] = {ScaleFormat::f32, ScaleFormat::ue8m0};
constexpr DType kSources[] = {DType::f32, DType::bf16};

void expect_lines(const Fp8Lines& got, const LinesReference& want, const char* what) {
  SCOPED_TRACE(what);
  ASSERT_EQ(got.q_RK.shape(), want.q.shape());
  ASSERT_EQ(got.scales_SR.shape(), want.scales.shape());
  EXPECT_EQ(first_difference(got.scales_SR, want.scales), "");
  EXPECT_EQ(first_difference(got.q_RK, want.q), "");
}

TEST_P(Fp8, RowsAndColumnsAreTheDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Size s : sizes(random)) {
    for (const DType dtype : kSources) {
      for (const ScaleFormat format : kFormats) {
        SCOPED_TRACE(phalanx::format("[{}, {}] {}, {}", s.rows, s.width, dtype_name(dtype),
                                     format == ScaleFormat::f32 ? "any scale" : "powers of two"));
        const Tensor host = scattered(random, {s.rows, s.width}, dtype);
        const Tensor x = here(host);
        const LinesReference rows = rows_reference(host, format);
        const LinesReference columns = columns_reference(host, format);
        expect_lines(fp8_rows(x, format), rows, "rows");
        expect_lines(fp8_columns(x, format), columns, "columns");
        const Fp8RowsAndColumns both = fp8_rows_and_columns(x, format);
        expect_lines(both.rows, rows, "rows of both");
        expect_lines(both.columns, columns, "columns of both");
        EXPECT_EQ(both.columns.format, format);
      }
    }
  }
}

// The wire format has the same elements and scales, in rows, where they are not tiny.
TEST_P(Fp8, RowsAreThoseThatAreSent) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Size s : sizes(random)) {
    for (const DType dtype : kSources) {
      SCOPED_TRACE(phalanx::format("[{}, {}] {}", s.rows, s.width, dtype_name(dtype)));
      const Tensor host = scattered(random, {s.rows, s.width}, dtype);
      for (const ScaleFormat format : kFormats) {
        const Quantized sent = quantize(here(host), format);
        const LinesReference want = rows_reference(host, format, 1e-4f);
        EXPECT_EQ(first_difference(sent.q_TD, want.q), "");
        const Tensor scales = sent.scales_TS.to(kCpu);
        ASSERT_EQ(scales.shape(), Shape({s.rows, scale_groups(s.width)}));
        for (int64_t i = 0; i < scales.numel(); ++i) {
          const int64_t row = i / scales.dim(1);
          const int64_t group = i % scales.dim(1);
          const float got = format == ScaleFormat::f32 ? scales.data<float>()[i]
                                                       : std::ldexp(1.0f, scales.data<uint8_t>()[i] - 127);
          ASSERT_EQ(got, want.scales.data<float>()[group * want.scales.dim(1) + row])
              << "row " << row << ", group " << group;
        }
      }
    }
  }
}

TEST_P(Fp8, ColumnsOfRowsAreExactButForUnderflow) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Size s : sizes(random)) {
    SCOPED_TRACE(phalanx::format("[{}, {}]", s.rows, s.width));
    const Tensor host = scattered(random, {s.rows, s.width}, DType::bf16);
    const Fp8Lines rows = fp8_rows(here(host), ScaleFormat::ue8m0);
    const Tensor kept = line_values(rows, s.width);
    const Fp8Lines columns = fp8_columns(rows);
    expect_lines(columns, columns_reference(kept, ScaleFormat::ue8m0), "columns of what is kept");
    const Tensor turned = line_values(columns, s.rows);
    for (int64_t c = 0; c < s.width; ++c) {
      for (int64_t first = 0; first < s.rows; first += kScaleGroup) {
        const int64_t last = std::min(s.rows, first + kScaleGroup);
        float largest = 0x1p-100f;
        for (int64_t t = first; t < last; ++t)
          largest = std::max(largest, std::abs(kept.data<float>()[t * s.width + c]));
        for (int64_t t = first; t < last; ++t) {
          const float v = kept.data<float>()[t * s.width + c];
          const float lost = std::abs(v) * 14336 >= largest ? 0 : largest / (448 * 512);
          ASSERT_LE(std::abs(turned.data<float>()[c * s.rows + t] - v), lost)
              << "row " << t << ", column " << c;
        }
      }
    }
  }
}

// Of one matrix.
void expect_blocks(const Fp8Blocks& got, const Tensor& scales, const Tensor& q, const char* what) {
  SCOPED_TRACE(what);
  EXPECT_EQ(first_difference(got.scales, scales), "");
  EXPECT_EQ(first_difference(got.q_NK, q), "");
}

TEST_P(Fp8, BlocksAreTheDefinitionAndTheirTransposeIsExact) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Size s : sizes(random)) {
    for (const DType dtype : kSources) {
      for (const ScaleFormat format : kFormats) {
        SCOPED_TRACE(phalanx::format("[{}, {}] {}", s.rows, s.width, dtype_name(dtype)));
        const Tensor host = scattered(random, {s.rows, s.width}, dtype);
        const BlocksReference want = blocks_reference(host, format);
        const Tensor q_turned = transpose_reference(want.q);
        const Tensor scales_turned = transpose_reference(want.scales);
        const Fp8Blocks got = fp8_blocks(here(host), format);
        expect_blocks(got, want.scales, want.q, "blocks");
        expect_blocks(fp8_transposed(got), scales_turned, q_turned, "blocks, transposed");
        expect_blocks(fp8_blocks_transposed(here(host), format), scales_turned, q_turned,
                      "transposed blocks");
      }
    }
  }
}

TEST_P(Fp8, BlocksOfExpertsAreEachTheirOwn) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const int64_t experts : {0, 1, 3}) {
    for (const Size s : sizes(random)) {
      const DType dtype = kSources[random.integer(0, 1)];
      const ScaleFormat format = kFormats[random.integer(0, 1)];
      SCOPED_TRACE(phalanx::format("[{}, {}, {}] {}", experts, s.rows, s.width, dtype_name(dtype)));
      const Tensor host =
          scattered(random, {experts * s.rows, s.width}, dtype).view({experts, s.rows, s.width});
      const Tensor w = here(host);
      const Fp8Blocks all = fp8_blocks(w, format);
      const Fp8Blocks turned = fp8_transposed(all);
      const Fp8Blocks at_once = fp8_blocks_transposed(w, format);
      ASSERT_EQ(all.q_NK.shape(), host.shape());
      ASSERT_EQ(turned.q_NK.shape(), Shape({experts, s.width, s.rows}));
      ASSERT_EQ(at_once.q_NK.shape(), turned.q_NK.shape());
      ASSERT_EQ(at_once.scales.shape(), turned.scales.shape());
      for (int64_t e = 0; e < experts; ++e) {
        SCOPED_TRACE(phalanx::format("expert {}", e));
        const auto matrix = [e](const Tensor& t) { return t.slice(e, e + 1).view({t.dim(1), t.dim(2)}); };
        const auto blocks = [&](const Fp8Blocks& b) { return Fp8Blocks{matrix(b.q_NK), matrix(b.scales)}; };
        const BlocksReference want = blocks_reference(matrix(host), format);
        const Tensor q_turned = transpose_reference(want.q);
        const Tensor scales_turned = transpose_reference(want.scales);
        expect_blocks(blocks(all), want.scales, want.q, "blocks");
        expect_blocks(blocks(turned), scales_turned, q_turned, "blocks, transposed");
        expect_blocks(blocks(at_once), scales_turned, q_turned, "transposed blocks");
      }
    }
  }
}

TEST_P(Fp8, NanAndInfinityStayInTheirGroups) {
  constexpr int64_t kRows = 200;
  constexpr int64_t kWidth = 264;
  const Tensor host = Tensor::empty({kRows, kWidth}, DType::f32);
  std::ranges::fill(host.span<float>(), 3.0f);
  host.data<float>()[5 * kWidth + 140] = std::numeric_limits<float>::quiet_NaN();
  host.data<float>()[150 * kWidth + 7] = std::numeric_limits<float>::infinity();
  const Fp8RowsAndColumns got = fp8_rows_and_columns(here(host), ScaleFormat::f32);
  const Tensor rows = line_values(got.rows, kWidth);
  const Tensor columns = line_values(got.columns, kRows);
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t c = 0; c < kWidth; ++c) {
      const float row = rows.data<float>()[t * kWidth + c];
      const float column = columns.data<float>()[c * kRows + t];
      const bool nan = t == 5 && c == 140;
      const bool in_row = t == 150 && c < 128;
      const bool in_column = c == 7 && t >= 128;
      ASSERT_EQ(std::isfinite(row), !nan && !in_row) << t << ", " << c;
      ASSERT_EQ(std::isfinite(column), !nan && !in_column) << t << ", " << c;
      for (const float v : {row, column})
        ASSERT_TRUE(!std::isfinite(v) || std::abs(v - 3) < 0.1) << t << ", " << c;
    }
  }
}

TEST_P(Fp8, RefusesWhatDoesNotFit) {
  const Tensor x = here(Tensor::zeros({130, 32}, DType::f32));
  EXPECT_THROW((void)fp8_columns(fp8_rows(x, ScaleFormat::f32)), BrokenPromise);
  EXPECT_THROW((void)fp8_rows(here(Tensor::zeros({130, 32}, DType::f64)), ScaleFormat::f32), BrokenPromise);
  Fp8Lines rows = fp8_rows(x, ScaleFormat::ue8m0);
  rows.scales_SR = here(Tensor::zeros({1, 130}, DType::f32));
  EXPECT_THROW((void)fp8_columns(rows), BrokenPromise);
  Fp8Blocks w = fp8_blocks(x, ScaleFormat::f32);
  w.scales = here(Tensor::zeros({1, 1}, DType::f32));
  EXPECT_THROW((void)fp8_transposed(w), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
