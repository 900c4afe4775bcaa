// Attention over lists of KV segments against its definition in f64.
#include <algorithm>

#include "phalanx/ops/attention.h"
#include "tests/ops/reference.h"

namespace phalanx::test {
namespace {

struct Problem {
  AttentionConfig config;
  Tensor q;
  std::vector<int32_t> positions;
  std::vector<KvSegment> segments;

  Tensor run() const { return attention_over_segments(q, indices(positions), segments, config); }
};

AttentionConfig heads(int heads, int kv_heads, int64_t head_dim, int64_t value_dim = 0) {
  return {heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)), value_dim};
}

// Segments of any length, empty ones too, at any positions: gaps, overlaps, and some behind every query.
Problem random_problem(const AttentionConfig& c, DType dtype, Random& random) {
  Problem p{.config = c, .q = random.tensor({5, c.heads * c.head_dim}, dtype, 2)};
  for (int i = 0; i < 5; ++i) p.positions.push_back(static_cast<int32_t>(random.integer(0, 300)));
  for (const int64_t longest : {0, 3, 70, 200, 20, 1}) {
    const int64_t rows = random.integer(longest / 2, longest);
    const Tensor k = random.tensor({rows, c.kv_heads * c.head_dim}, dtype);
    const Tensor v = random.tensor({rows, c.kv_heads * c.values()}, dtype);
    p.segments.push_back({k, v, random.integer(0, 350)});
  }
  return p;
}

Values reference(const Problem& p) {
  const auto& c = p.config;
  const Values q = values(p.q);
  Values y(p.positions.size() * static_cast<size_t>(c.heads * c.values()));
  for (size_t row = 0; row < p.positions.size(); ++row) {
    for (int h = 0; h < c.heads; ++h) {
      const auto at = row * static_cast<size_t>(c.heads * c.head_dim) + static_cast<size_t>(h * c.head_dim);
      const auto d = static_cast<size_t>(c.head_dim);
      const auto e = static_cast<size_t>(c.values());
      const auto kv_heads = static_cast<size_t>(c.kv_heads);
      const auto kv_head = static_cast<size_t>(h / (c.heads / c.kv_heads));
      double* out = y.data() + (row * static_cast<size_t>(c.heads) + static_cast<size_t>(h)) * e;
      double sum = 0;
      for (const KvSegment& s : p.segments) {
        const Values k = values(s.k_SGd);
        const Values v = values(s.v_SGd);
        for (int64_t j = 0; j < s.k_SGd.rows() && s.first_position + j <= p.positions[row]; ++j) {
          const size_t head = static_cast<size_t>(j) * kv_heads + kv_head;
          double score = 0;
          for (size_t i = 0; i < d; ++i) score += q[at + i] * k[head * d + i];
          const double weight = std::exp(c.scale * score);
          sum += weight;
          for (size_t i = 0; i < e; ++i) out[i] += weight * v[head * e + i];
        }
      }
      for (size_t i = 0; i < e && sum > 0; ++i) out[i] /= sum;
    }
  }
  return y;
}

TEST(AttentionOverSegments, EqualsItsDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const AttentionConfig& c : {heads(1, 1, 1), heads(4, 2, 16), heads(6, 1, 13), heads(2, 2, 64),
                                   heads(4, 4, 24, 16), heads(2, 1, 3, 7)}) {
    for (const DType dtype : kFloats) {
      const Problem p = random_problem(c, dtype, random);
      const Values want = reference(p);
      const Tolerance tolerance = within(dtype == DType::f64 ? 400 : 40, dtype, std::max(1.0, largest(want)));
      for_each_target([&](bool) { expect_close(values(p.run()), want, tolerance, "y"); });
      expect_same_bits_for_any_threads([&] { return std::vector{p.run()}; });
    }
  }
}

TEST(AttentionOverSegments, ARowThatSeesNothingIsZero) {
  Random random;
  for (const DType dtype : kFloats) {
    const Problem seen = random_problem(heads(4, 2, 5), dtype, random);
    Problem p = seen;
    p.segments.clear();
    EXPECT_EQ(values(p.run()), Values(static_cast<size_t>(p.q.numel()), 0));
    const Tensor k = random.tensor({3, 10}, dtype);
    p.segments = {{k, k, 100}, {k.slice(0, 0), k.slice(0, 0), 0}};
    p.positions = {0, 99, 50, 3, 100};
    const Values y = values(p.run());
    EXPECT_TRUE(std::all_of(y.begin(), y.begin() + 4 * 20, [](double v) { return v == 0; }));
    EXPECT_TRUE(std::none_of(y.begin() + 4 * 20, y.end(), [](double v) { return v == 0; }));
    p.segments.push_back({k, k, 101});  // seen by none: nothing changes
    EXPECT_EQ(values(p.run()), y);
  }
}

// What a cache gives, step by step, is what training's attention computes at once.
TEST(AttentionOverSegments, DecodingEqualsTheWholeSequence) {
  Random random;
  SCOPED_TRACE(random.trace());
  const AttentionConfig c = heads(4, 2, 24);
  const int64_t n = 77;
  const Tensor q = random.tensor({n, 96}, DType::f32);
  const Tensor k = random.tensor({n, 48}, DType::f32);
  const Tensor v = random.tensor({n, 48}, DType::f32);
  const Tensor whole = attention(q, k, v, indices64({2}, {0, n}), c).y_THd;
  for (const int32_t row : {0, 1, 30, 76}) {
    const int64_t cut = row / 2;
    const std::vector<KvSegment> pages = {{k.slice(0, cut), v.slice(0, cut), 0},
                                          {k.slice(cut, n), v.slice(cut, n), cut}};
    const Tensor y = attention_over_segments(q.slice(row, row + 1), indices({row}), pages, c);
    expect_close(values(y), values(whole.slice(row, row + 1)), within(20, DType::f32, 1), "row");
  }
}

TEST(AttentionOverSegments, NoRows) {
  const AttentionConfig c = heads(2, 1, 4);
  EXPECT_EQ(attention_over_segments(Tensor::empty({0, 8}, DType::f32), indices({}), {}, c).rows(), 0);
}

}  // namespace
}  // namespace phalanx::test
