// FP8 factors of experts against the definition, bit for bit, and their products against f64.
#include "phalanx/ops/fp8_grouped.h"

#include <algorithm>

#include "tests/ops/fp8_product_reference.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

// Experts' rows, one behind the other; rows before and behind belong to none.
struct Groups {
  std::vector<int64_t> sizes;
  int64_t before = 0;
  int64_t behind = 0;

  int64_t experts() const { return std::ssize(sizes); }
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> o = {before};
    for (const int64_t size : sizes) o.push_back(o.back() + size);
    return o;
  }
  int64_t live() const { return offsets().back(); }
  int64_t capacity() const { return live() + behind; }
  Tensor offsets_here() const { return here(indices64({experts() + 1}, offsets())); }
  Rows rows_here(const Tensor& host) const { return {here(host), here(indices64({1}, {live()}))}; }
};

// A part of the experts' rows, and of the columns' terms.
struct Expert {
  int64_t begin;
  int64_t end;
  int64_t term;
  int64_t terms;
};

std::vector<Expert> experts_of(const Groups& groups) {
  std::vector<Expert> out;
  int64_t begin = groups.before;
  int64_t term = 0;
  for (const int64_t size : groups.sizes) {
    const int64_t terms = (size + 127) / 128 * 128;
    out.push_back({begin, begin + size, term, terms});
    begin += size;
    term += terms;
  }
  return out;
}

std::vector<Groups> groups_of(Random& random) {
  std::vector<int64_t> many;
  for (int i = 0; i < 300; ++i) many.push_back(random.integer(0, 3));
  return {{.sizes = {5, 0, 235, 1, 0}, .behind = 9},
          {.sizes = {0, 3, 128, 129, 256}, .before = 7, .behind = 1},
          {.sizes = {1}},
          {.sizes = {0, 0}, .behind = 4},
          {.sizes = {random.integer(0, 300), random.integer(0, 300), random.integer(0, 300)},
           .before = random.integer(0, 200),
           .behind = random.integer(0, 300)},
          {.sizes = many, .behind = 50}};
}

constexpr int64_t kWidths[] = {1, 20, 136, 264};
constexpr ScaleFormat kFormats[] = {ScaleFormat::f32, ScaleFormat::ue8m0};
constexpr DType kSources[] = {DType::f32, DType::bf16};

// Lines [begin, end) are those of `want`, whose scales are its own.
void expect_rows(const Fp8Lines& got, int64_t begin, int64_t end, const LinesReference& want) {
  EXPECT_EQ(first_difference(got.q_RK.slice(begin, end), want.q), "");
  const Tensor scales = got.scales_SR.to(kCpu);
  for (int64_t g = 0; g < scales.dim(0); ++g) {
    for (int64_t r = begin; r < end; ++r)
      ASSERT_EQ(scales.data<float>()[g * scales.dim(1) + r],
                want.scales.data<float>()[g * want.scales.dim(1) + r - begin])
          << "scale of row " << r << ", group " << g;
  }
}

// An expert's terms of all lines, on the host.
Tensor terms_of(const Tensor& q, const Expert& e) {
  const Tensor out = Tensor::empty({q.dim(0), e.terms}, DType::f8e4m3);
  for (int64_t d = 0; d < q.dim(0); ++d)
    std::copy_n(q.data<f8e4m3>() + d * q.dim(1) + e.term, e.terms, out.data<f8e4m3>() + d * e.terms);
  return out;
}

void expect_columns(const Fp8Lines& got, const Groups& groups, const Tensor& x, ScaleFormat format) {
  ASSERT_EQ(got.format, format);
  const int64_t capacity = (groups.capacity() + 127 * groups.experts() + 127) / 128 * 128;
  ASSERT_EQ(got.q_RK.shape(), Shape({x.dim(1), capacity}));
  ASSERT_EQ(got.scales_SR.shape(), Shape({capacity / 128, (x.dim(1) + 3) / 4 * 4}));
  const Tensor q = got.q_RK.to(kCpu);
  for (const Expert& e : experts_of(groups)) {
    const LinesReference want = columns_reference(x.slice(e.begin, e.end), format);
    const int64_t stored = want.q.dim(1);
    const Tensor terms = terms_of(q, e);
    for (int64_t i = 0; i < terms.numel(); ++i) {
      const int64_t line = i / e.terms;
      const int64_t term = i % e.terms;
      const uint8_t bits = term < stored ? want.q.data<f8e4m3>()[line * stored + term].bits : 0;
      ASSERT_EQ(terms.data<f8e4m3>()[i].bits, bits) << "line " << line << ", term " << term;
    }
    EXPECT_EQ(first_difference(got.scales_SR.slice(e.term / 128, (e.term + e.terms) / 128), want.scales), "");
  }
}

std::string name(const Groups& g, int64_t width) { return format("offsets {}, {}", g.offsets(), width); }

TEST_P(Fp8Grouped, RowsAreThoseThatLive) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Groups& groups : groups_of(random)) {
    for (const int64_t width : kWidths) {
      SCOPED_TRACE(name(groups, width));
      const DType dtype = kSources[random.integer(0, 1)];
      const ScaleFormat format = kFormats[random.integer(0, 1)];
      const Tensor host = scattered(random, {groups.capacity(), width}, dtype);
      const Fp8Rows got = fp8_rows(groups.rows_here(host), format);
      ASSERT_EQ(got.lines.q_RK.shape(), host.shape());
      ASSERT_EQ(got.lines.format, format);
      EXPECT_EQ(list(got.live), std::vector<int64_t>{groups.live()});
      expect_rows(got.lines, 0, groups.live(), rows_reference(host.slice(0, groups.live()), format));
    }
  }
}

TEST_P(Fp8Grouped, ColumnsOfEachExpertAreTheDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Groups& groups : groups_of(random)) {
    for (const int64_t width : kWidths) {
      for (const DType dtype : kSources) {
        SCOPED_TRACE(name(groups, width));
        const ScaleFormat format = kFormats[random.integer(0, 1)];
        const Tensor host = scattered(random, {groups.capacity(), width}, dtype);
        const Rows x = groups.rows_here(host);
        expect_columns(fp8_grouped_columns(x, groups.offsets_here(), format), groups, host, format);
        const auto both = fp8_grouped_rows_and_columns(x, groups.offsets_here(), format);
        expect_columns(both.columns, groups, host, format);
        expect_rows(both.rows.lines, groups.before, groups.live(),
                    rows_reference(host.slice(groups.before, groups.live()), format));
        EXPECT_EQ(list(both.rows.live), std::vector<int64_t>{groups.live()});
      }
    }
  }
}

TEST_P(Fp8Grouped, ColumnsOfKeptRowsAreThoseOfTheirValues) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Groups& groups : groups_of(random)) {
    for (const int64_t width : kWidths) {
      SCOPED_TRACE(name(groups, width));
      const Tensor host = scattered(random, {groups.capacity(), width}, DType::bf16);
      const Fp8Rows rows = fp8_rows(groups.rows_here(host), ScaleFormat::ue8m0);
      expect_columns(fp8_grouped_columns(rows, groups.offsets_here()), groups, line_values(rows.lines, width),
                     ScaleFormat::ue8m0);
    }
  }
}

struct Case {
  Groups groups;
  int64_t n;
  int64_t k;
};

// Tiles are 256 × 128, rows for one wave half of that; K whole 16.
std::vector<Case> cases(Random& random) {
  return {{{.sizes = {5, 0, 135, 1, 0}, .behind = 9}, 20, 48},
          {{.sizes = {0, 64, 65, 128}, .before = 7, .behind = 1}, 137, 144},
          {{.sizes = {257, 3}}, 8, 272},
          {{.sizes = {1}}, 1, 16},
          {{.sizes = {0, 0}, .behind = 4}, 24, 32},
          {{.sizes = {random.integer(0, 200), random.integer(0, 200)}, .behind = random.integer(0, 9)},
           random.integer(1, 140),
           16 * random.integer(1, 10)}};
}

Tensor matrix(const Tensor& t, int64_t e) { return t.slice(e, e + 1).view({t.dim(1), t.dim(2)}); }

TEST_P(Fp8Grouped, RowsTimesWeightsAreTheDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : cases(random)) {
    SCOPED_TRACE(format("{} × {}", name(c.groups, c.n), c.k));
    const int64_t experts = c.groups.experts();
    const Fp8Rows x =
        fp8_rows(c.groups.rows_here(uneven_groups(random, c.groups.capacity(), c.k)), ScaleFormat::f32);
    const Tensor w = uneven_groups(random, experts * c.n, c.k).view({experts, c.n, c.k});
    const Fp8Blocks blocks = fp8_blocks(here(w), ScaleFormat::f32);
    const Tensor scales = x.lines.scales_SR.to(kCpu);
    for (const DType dtype : {DType::bf16, DType::f32}) {
      const Rows y = fp8_grouped_matmul_nt(x, blocks, c.groups.offsets_here(), dtype);
      ASSERT_EQ(y.data.shape(), Shape({c.groups.capacity(), c.n}));
      ASSERT_EQ(y.data.dtype(), dtype);
      EXPECT_EQ(list(y.live), std::vector<int64_t>{c.groups.live()});
      for (int64_t e = 0; e < experts; ++e) {
        SCOPED_TRACE(format("expert {}, {}", e, dtype_name(dtype)));
        const Expert own = experts_of(c.groups)[static_cast<size_t>(e)];
        const Fp8Factor a = {
            own.end - own.begin, c.k, fp8_values(x.lines.q_RK.slice(own.begin, own.end)),
            [&](int64_t r, int64_t g) {
              return static_cast<double>(scales.data<float>()[g * scales.dim(1) + own.begin + r]);
            }};
        const Fp8Factor b = fp8_factor(Fp8Blocks{matrix(blocks.q_NK, e), matrix(blocks.scales, e)});
        const std::vector<Fp8Sum> want = fp8_product_reference(a, b);
        expect_fp8_product(y.data.slice(own.begin, own.end), want, Values(want.size(), 0));
      }
    }
  }
}

TEST_P(Fp8Grouped, WeightGradientsAreTheDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : cases(random)) {
    SCOPED_TRACE(format("{} × {}", name(c.groups, c.n), c.k));
    const auto columns = [&](int64_t width) {
      const Rows x = c.groups.rows_here(uneven_groups(random, c.groups.capacity(), width));
      return fp8_grouped_columns(x, c.groups.offsets_here(), ScaleFormat::f32);
    };
    const Fp8Lines dy = columns(c.n);
    const Fp8Lines x = columns(c.k);
    const auto factor = [&](const Fp8Lines& lines, const Expert& e) {
      return fp8_factor(Fp8Lines{terms_of(lines.q_RK.to(kCpu), e),
                                 lines.scales_SR.slice(e.term / 128, (e.term + e.terms) / 128)});
    };
    std::vector<std::vector<Fp8Sum>> want;
    for (const Expert& e : experts_of(c.groups))
      want.push_back(fp8_product_reference(factor(dy, e), factor(x, e)));
    for (const DType dtype : {DType::bf16, DType::f32}) {
      for (const Into into : {Into::replace, Into::add}) {
        const Shape shape = {c.groups.experts(), c.n, c.k};
        const Tensor before = rounded_on_host(random.tensor(shape, DType::f32), dtype);
        const Tensor dw = copy_here(before);
        fp8_grouped_matmul_tn_into(dw, dy, x, c.groups.offsets_here(), into);
        for (int64_t e = 0; e < shape[0]; ++e) {
          SCOPED_TRACE(
              format("expert {}, {} {}", e, into == Into::add ? "added to" : "into", dtype_name(dtype)));
          const auto& sums = want[static_cast<size_t>(e)];
          const Tensor old = matrix(before, e);
          Values added(sums.size(), 0);
          if (into == Into::add) added = values(dtype == DType::bf16 ? wide_on_host(old) : old);
          expect_fp8_product(matrix(dw, e), sums, added);
        }
      }
    }
  }
}

TEST_P(Fp8Grouped, TakesNoExpertsAndNoRows) {
  const Rows none = here(all_rows(Tensor::empty({0, 16}, DType::f32)));
  const Tensor one = here(indices64({1}, {0}));
  const auto blocks = [](int64_t experts) {
    return fp8_blocks(here(Tensor::zeros({experts, 8, 16}, DType::f32)), ScaleFormat::f32);
  };
  const Fp8Rows rows = fp8_rows(none, ScaleFormat::ue8m0);
  EXPECT_EQ(fp8_grouped_matmul_nt(rows, blocks(0), one, DType::bf16).capacity(), 0);
  EXPECT_EQ(fp8_grouped_columns(none, one, ScaleFormat::f32).q_RK.shape(), Shape({16, 0}));
  const Tensor three = here(indices64({3}, {0, 0, 0}));
  EXPECT_EQ(fp8_grouped_matmul_nt(rows, blocks(2), three, DType::bf16).capacity(), 0);
  Random random;
  const Tensor before = random.tensor({2, 16, 16}, DType::f32);
  const Tensor dw = copy_here(before);
  const Fp8Lines columns = fp8_grouped_columns(rows, three);
  fp8_grouped_matmul_tn_into(dw, columns, columns, three, Into::add);
  EXPECT_TRUE(same_bits(dw, before));
  fp8_grouped_matmul_tn_into(dw, columns, columns, three, Into::replace);
  EXPECT_TRUE(same_bits(dw, Tensor::zeros(before.shape(), DType::f32)));
}

TEST_P(Fp8Grouped, RefusesWhatDoesNotFit) {
  const Rows x = here(all_rows(Tensor::zeros({3, 16}, DType::f32)));
  const auto offsets = [](const std::vector<int64_t>& o) { return here(indices64({std::ssize(o)}, o)); };
  const Fp8Blocks w = fp8_blocks(here(Tensor::zeros({2, 8, 16}, DType::f32)), ScaleFormat::f32);
  const Fp8Rows rows = fp8_rows(x, ScaleFormat::f32);
  expect_refused([&] { (void)fp8_grouped_columns(rows, offsets({0, 1, 3})); });
  expect_refused([&] { (void)fp8_grouped_matmul_nt(rows, w, offsets({0, 3}), DType::bf16); });
  expect_refused([&] {
    (void)fp8_grouped_matmul_nt(rows, fp8_transposed(w), offsets({0, 1, 3}), DType::bf16);
  });
  for (const auto& wrong : std::vector<std::vector<int64_t>>{{0, 2, 4}, {0, 2, 1}, {-1, 0, 3}}) {
    SCOPED_TRACE(format("offsets {}", wrong));
    expect_refused([&] { (void)fp8_grouped_columns(x, offsets(wrong), ScaleFormat::f32); });
    expect_refused([&] { (void)fp8_grouped_rows_and_columns(x, offsets(wrong), ScaleFormat::f32); });
    expect_refused([&] { (void)fp8_grouped_matmul_nt(rows, w, offsets(wrong), DType::bf16); });
  }
  const Fp8Lines columns = fp8_grouped_columns(x, offsets({0, 1, 3}), ScaleFormat::f32);
  const Fp8Lines others = fp8_grouped_columns(x, offsets({0, 1, 1, 1, 3}), ScaleFormat::f32);
  const Tensor dw = here(Tensor::zeros({2, 16, 16}, DType::f32));
  expect_refused([&] { fp8_grouped_matmul_tn_into(dw, columns, others, offsets({0, 1, 3}), Into::add); });
  expect_refused([&] { fp8_grouped_matmul_tn_into(dw, columns, columns, offsets({0, 3}), Into::add); });
  Rows many = x;
  many.live = here(indices64({1}, {4}));
  expect_refused([&] { (void)fp8_rows(many, ScaleFormat::f32); });
}

}  // namespace
}  // namespace phalanx::test
