// Attention against its definition in f64, with the whole T×T matrix.
#include "phalanx/ops/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/ops/reference.h"

namespace phalanx::test {
namespace {

struct Case {
  AttentionConfig config;
  std::vector<int64_t> lengths;  // of the sequences
};

AttentionConfig heads(int heads, int kv_heads, int64_t head_dim, int64_t value_dim = 0) {
  return {heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)), value_dim};
}

// Lengths around the blocks' and the vectors' sizes, empty sequences, grouped heads, head sizes that no
// vector divides, narrower and wider values, and a long sequence, whose keys are cut into ranges.
std::vector<Case> cases() {
  return {{heads(1, 1, 1), {1}},          {heads(2, 2, 8), {0, 1, 2, 0, 3}},
          {heads(4, 4, 32), {64, 64}},    {heads(4, 2, 16), {63, 65, 17}},
          {heads(3, 1, 5), {33, 1, 70}},  {heads(6, 3, 24), {129, 31}},
          {heads(2, 1, 64), {256}},       {heads(2, 1, 13), {590, 47}},
          {heads(2, 1, 20), {1111}},      {heads(2, 2, 7), {}},
          {heads(4, 4, 24, 16), {70, 1}}, {heads(2, 1, 5, 18), {600, 3}}};
}

struct Problem {
  AttentionConfig config;
  std::vector<int64_t> offsets = {0};
  Values q, k, v, dy;

  Problem(const Case& c, Random& random) : config(c.config) {
    for (const int64_t n : c.lengths) offsets.push_back(offsets.back() + n);
    q = values(random.tensor({rows(), query_stride()}, DType::f32, 2));
    k = values(random.tensor({rows(), key_stride()}, DType::f32));
    v = values(random.tensor({rows(), value_stride()}, DType::f32));
    dy = values(random.tensor({rows(), output_stride()}, DType::f32));
  }
  int64_t rows() const { return offsets.back(); }
  int64_t query_stride() const { return config.heads * config.head_dim; }
  int64_t key_stride() const { return config.kv_heads * config.head_dim; }
  int64_t value_stride() const { return config.kv_heads * config.values(); }
  int64_t output_stride() const { return config.heads * config.values(); }
  std::string trace() const {
    return format("{}/{} heads of {} and {}, offsets {}", config.heads, config.kv_heads, config.head_dim,
                  config.values(), std::span<const int64_t>(offsets));
  }
};

struct Results {
  Values y, log_sum_exp, dq, dk, dv;
};

constexpr Values Results::*kResults[] = {&Results::y, &Results::log_sum_exp, &Results::dq, &Results::dk,
                                         &Results::dv};
constexpr const char* kNames[] = {"y", "log-sum-exp", "dq", "dk", "dv"};

double dot(const double* a, const double* b, int64_t n) { return std::inner_product(a, a + n, b, 0.0); }

// Row i of a sequence that starts at row `start`, one head: y = softmax(scale · q kᵀ) v over the rows up to
// i, and ds = p · (dy·v − dy·y), dq = scale · ds k, dk = scale · dsᵀ q, dv = pᵀ dy.
void reference_row(const Problem& x, int64_t start, int64_t i, int head, Results& out) {
  const int64_t d = x.config.head_dim;
  const int64_t e_columns = x.config.values();
  const int kv_head = head / (x.config.heads / x.config.kv_heads);
  const int64_t query = (start + i) * x.query_stride() + head * d;
  const int64_t output = (start + i) * x.output_stride() + head * e_columns;
  const auto key = [&](int64_t j) { return (start + j) * x.key_stride() + kv_head * d; };
  const auto value = [&](int64_t j) { return (start + j) * x.value_stride() + kv_head * e_columns; };
  Values p(static_cast<size_t>(i + 1));
  for (int64_t j = 0; j <= i; ++j) {
    p[static_cast<size_t>(j)] = x.config.scale * dot(x.q.data() + query, x.k.data() + key(j), d);
  }
  const double max = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (const double s : p) sum += std::exp(s - max);
  const double log_sum_exp = max + std::log(sum);
  out.log_sum_exp.at(static_cast<size_t>((start + i) * x.config.heads + head)) = log_sum_exp;
  double* y = out.y.data() + output;
  const double* dy = x.dy.data() + output;
  for (int64_t j = 0; j <= i; ++j) {
    double& e = p[static_cast<size_t>(j)];
    e = std::exp(e - log_sum_exp);
    for (int64_t c = 0; c < e_columns; ++c) y[c] += e * x.v.data()[value(j) + c];
  }
  const double delta = dot(dy, y, e_columns);
  for (int64_t j = 0; j <= i; ++j) {
    const double e = p[static_cast<size_t>(j)];
    const double ds = x.config.scale * e * (dot(dy, x.v.data() + value(j), e_columns) - delta);
    for (int64_t c = 0; c < d; ++c) {
      out.dq.data()[query + c] += ds * x.k.data()[key(j) + c];
      out.dk.data()[key(j) + c] += ds * x.q.data()[query + c];
    }
    for (int64_t c = 0; c < e_columns; ++c) out.dv.data()[value(j) + c] += e * dy[c];
  }
}

Results reference(const Problem& x) {
  Results out = {Values(x.dy.size()), Values(static_cast<size_t>(x.rows() * x.config.heads)),
                 Values(x.q.size()), Values(x.k.size()), Values(x.v.size())};
  for (size_t b = 0; b + 1 < x.offsets.size(); ++b) {
    for (int64_t i = 0; i < x.offsets[b + 1] - x.offsets[b]; ++i) {
      for (int h = 0; h < x.config.heads; ++h) reference_row(x, x.offsets[b], i, h, out);
    }
  }
  return out;
}

struct Inputs {
  Tensor q, k, v, dy, offsets;
  AttentionConfig config;

  Inputs(const Problem& x, DType dtype)
      : q(tensor({x.rows(), x.query_stride()}, dtype, x.q)),
        k(tensor({x.rows(), x.key_stride()}, dtype, x.k)),
        v(tensor({x.rows(), x.value_stride()}, dtype, x.v)),
        dy(tensor({x.rows(), x.output_stride()}, dtype, x.dy)),
        offsets(indices64({std::ssize(x.offsets)}, x.offsets)),
        config(x.config) {}

  Attended forward() const { return attention(q, k, v, offsets, config); }
  // y, log-sum-exp, dq, dk, dv
  std::vector<Tensor> run() const {
    const Attended out = forward();
    const AttentionGradients g = attention_backward(dy, q, k, v, out, offsets, config);
    return {out.y_THd, out.log_sum_exp_TH, g.dq_THd, g.dk_TGd, g.dv_TGd};
  }
};

Results run(const Problem& x, DType dtype) {
  const std::vector<Tensor> t = Inputs(x, dtype).run();
  return {values(t[0]), values(t[1]), values(t[2]), values(t[3]), values(t[4])};
}

void expect_equal(const Results& got, const Results& want) {
  for (size_t i = 0; i < std::size(kResults); ++i)
    EXPECT_EQ(got.*kResults[i], want.*kResults[i]) << kNames[i];
}

// Relative to each result's largest element; in f32 the rounding of scores, up to about 20, dominates.
void expect_definition(const Problem& x) {
  SCOPED_TRACE(x.trace());
  const Results want = reference(x);
  for (const DType dtype : kFloats) {
    const Results got = run(x, dtype);
    for (size_t i = 0; i < std::size(kResults); ++i) {
      const Values& w = want.*kResults[i];
      expect_close(got.*kResults[i], w, within(dtype == DType::f64 ? 400 : 40, dtype, largest(w)), kNames[i]);
    }
  }
}

TEST(Attention, EqualsItsDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : cases()) expect_definition(Problem(c, random));
}

TEST(Attention, EqualsItsDefinitionOnEveryTarget) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const size_t i : {1, 3, 4, 5, 10}) {
    const Problem x(cases()[i], random);
    for_each_target([&](bool) { expect_definition(x); });
  }
}

// Along random directions, by central differences of fourth order.
TEST(Attention, GradientIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Problem x({heads(4, 2, 6, 9), {1, 35, 70}}, random);
  const Results r = run(x, DType::f64);
  const auto check = [&](Values Problem::*input, const Values& gradient, const char* name) {
    Values direction(gradient.size());
    for (double& e : direction) e = random.normal();
    const auto loss_at = [&](double step) {
      Problem moved = x;
      for (size_t i = 0; i < direction.size(); ++i) (moved.*input)[i] += step * direction[i];
      const Inputs in(moved, DType::f64);
      return test::dot(in.forward().y_THd, in.dy);
    };
    const double h = 1e-3;
    const double slope = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
    expect_gradient({dot(gradient.data(), direction.data(), std::ssize(direction))}, {slope}, name);
  };
  check(&Problem::q, r.dq, "q");
  check(&Problem::k, r.dk, "k");
  check(&Problem::v, r.dv, "v");
}

TEST(Attention, BitsDoNotDependOnTheNumberOfThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : {Case{heads(4, 2, 16), {63, 65, 17}}, Case{heads(2, 1, 20), {1111, 70}}}) {
    const Problem x(c, random);
    for (const DType dtype : kFloats) {
      const Inputs in(x, dtype);
      expect_same_bits_for_any_threads([&] { return in.run(); });
    }
  }
}

// Sequence b of a batch alone.
Problem only(const Problem& x, size_t b) {
  Problem one = x;
  const auto cut = [&](Values& rows, int64_t stride) {
    rows = Values(rows.begin() + x.offsets[b] * stride, rows.begin() + x.offsets[b + 1] * stride);
  };
  one.offsets = {0, x.offsets[b + 1] - x.offsets[b]};
  cut(one.q, x.query_stride());
  cut(one.dy, x.output_stride());
  cut(one.k, x.key_stride());
  cut(one.v, x.value_stride());
  return one;
}

void append(Results& to, const Results& from) {
  for (const auto member : kResults) {
    (to.*member).insert((to.*member).end(), (from.*member).begin(), (from.*member).end());
  }
}

TEST(Attention, PackedSequencesAreAsAloneInAnyOrder) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Problem x({heads(4, 2, 12), {5, 64, 0, 130, 1, 600}}, random);
  for (const DType dtype : kFloats) {
    Results alone;
    Results alone_permuted;
    Problem permuted = only(x, 3);
    append(alone_permuted, run(permuted, dtype));
    for (size_t b = 0; b + 1 < x.offsets.size(); ++b) {
      const Problem one = only(x, b);
      const Results r = run(one, dtype);
      append(alone, r);
      if (b == 3) continue;
      append(alone_permuted, r);
      for (const auto member : {&Problem::q, &Problem::k, &Problem::v, &Problem::dy}) {
        (permuted.*member).insert((permuted.*member).end(), (one.*member).begin(), (one.*member).end());
      }
      permuted.offsets.push_back(permuted.offsets.back() + one.rows());
    }
    expect_equal(run(x, dtype), alone);
    expect_equal(run(permuted, dtype), alone_permuted);
  }
}

TEST(Attention, EarlierRowsDoNotSeeLaterOnes) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Problem x({heads(2, 1, 8), {150}}, random);
  const Values before = run(x, DType::f32).y;
  for (const int64_t row : {1, 7, 63, 64, 100, 149}) {
    Problem changed = x;
    for (Values* rows : {&changed.k, &changed.v}) {
      std::fill_n(rows->begin() + row * x.key_stride(), x.key_stride(), 3.0);
    }
    const Values after = run(changed, DType::f32).y;
    const auto same = static_cast<size_t>(row * x.query_stride());
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + row * x.query_stride(), after.begin())) << row;
    EXPECT_NE(before[same], after[same]) << row;
  }
}

// Scores far beyond the range of exp pick one key; NaN in a query stays in its row.
TEST(Attention, LargeScoresAndNan) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    Problem x({heads(1, 1, 16), {90}}, random);
    for (double& e : x.q) e *= 8192;
    const Values want = reference(x).y;
    expect_close(run(x, dtype).y, want, {dtype == DType::f64 ? 1e-9 : 5e-2, largest(want)}, "y");
    for_each_target([&](bool) {
      Problem bad = x;
      bad.q[40 * 16 + 3] = std::numeric_limits<double>::quiet_NaN();
      const Values y = run(bad, dtype).y;
      for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 16 == 40) << i;
    });
  }
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  Random random;
  const Inputs in(Problem({heads(4, 2, 8), {5}}, random), DType::f32);
  AttentionConfig wrong = in.config;
  wrong.kv_heads = 3;
  EXPECT_THROW(attention(in.q, in.k, in.v, in.offsets, wrong), BrokenPromise);
  AttentionConfig wide = in.config;
  wide.value_dim = 9;
  EXPECT_THROW(attention(in.q, in.k, in.v, in.offsets, wide), BrokenPromise);
  EXPECT_THROW(attention(in.q, in.q, in.v, in.offsets, in.config), BrokenPromise);
  EXPECT_THROW(attention(in.q, in.k, in.v, indices64({2}, {0, 4}), in.config), BrokenPromise);
  EXPECT_THROW(attention(in.q, in.k, in.v, indices64({3}, {0, 6, 5}), in.config), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
