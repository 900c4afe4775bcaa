// Attention of whole sequences against its definition.
#include "phalanx/ops/attention.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/ops/attention_magnitudes.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

// Lengths around the blocks' and the vectors' sizes, empty sequences, grouped heads, head sizes that no
// vector divides, narrower and wider values, and a long sequence, whose keys are cut into ranges.
std::vector<AttentionCase> cases() {
  return {{heads(1, 1, 1), {1}},          {heads(2, 2, 8), {0, 1, 2, 0, 3}},
          {heads(4, 4, 32), {64, 64}},    {heads(4, 2, 16), {63, 65, 17}},
          {heads(3, 1, 5), {33, 1, 70}},  {heads(6, 3, 24), {129, 31}},
          {heads(2, 1, 64), {256}},       {heads(2, 1, 13), {590, 47}},
          {heads(2, 1, 20), {1111}},      {heads(2, 2, 7), {}},
          {heads(4, 4, 24, 16), {70, 1}}, {heads(2, 1, 5, 18), {600, 3}}};
}
struct Inputs {
  Tensor q, k, v, dy, offsets;
  AttentionConfig config;

  Inputs(const AttentionProblem& x, DType dtype)
      : q(here(tensor({x.rows(), x.query_stride()}, dtype, x.q))),
        k(here(tensor({x.rows(), x.key_stride()}, dtype, x.k))),
        v(here(tensor({x.rows(), x.value_stride()}, dtype, x.v))),
        dy(here(tensor({x.rows(), x.output_stride()}, dtype, x.dy))),
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

AttentionResults run(const AttentionProblem& x, DType dtype) {
  const std::vector<Tensor> t = Inputs(x, dtype).run();
  return {values(t[0]), values(t[1]), values(t[2]), values(t[3]), values(t[4])};
}

void expect_equal(const AttentionResults& got, const AttentionResults& want) {
  for (size_t i = 0; i < std::size(kAttentionResults); ++i)
    EXPECT_EQ(got.*kAttentionResults[i], want.*kAttentionResults[i]) << kAttentionNames[i];
}

void expect_definition(const AttentionProblem& x) {
  SCOPED_TRACE(x.trace());
  const AttentionResults want = attention_reference(x);
  for (const DType dtype : kFloats) expect_attention(x, run(x, dtype), want, dtype);
}

TEST_P(Attention, EqualsItsDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const AttentionCase& c : cases()) expect_definition(AttentionProblem(c, random));
}

TEST_P(Attention, EqualsItsDefinitionOnEveryTarget) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const size_t i : {1, 3, 4, 5, 10}) {
    const AttentionProblem x(cases()[i], random);
    for_each_target_here([&](bool) { expect_definition(x); });
  }
}

// Along random directions, by central differences of fourth order.
TEST_P(Attention, GradientIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const AttentionProblem x({heads(4, 2, 6, 9), {1, 35, 70}}, random);
  const AttentionResults r = run(x, DType::f64);
  const auto check = [&](Values AttentionProblem::*input, const Values& gradient, const char* name) {
    Values direction(gradient.size());
    for (double& e : direction) e = random.normal();
    const auto loss_at = [&](double step) {
      AttentionProblem moved = x;
      for (size_t i = 0; i < direction.size(); ++i) (moved.*input)[i] += step * direction[i];
      const Inputs in(moved, DType::f64);
      return dot(in.forward().y_THd, in.dy);
    };
    const double h = 1e-3;
    const double slope = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
    const double analytic = std::inner_product(gradient.begin(), gradient.end(), direction.begin(), 0.0);
    expect_gradient({analytic}, {slope}, name);
  };
  check(&AttentionProblem::q, r.dq, "q");
  check(&AttentionProblem::k, r.dk, "k");
  check(&AttentionProblem::v, r.dv, "v");
}

TEST_P(Attention, BitsDoNotDependOnTheNumberOfThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const AttentionCase& c :
       {AttentionCase{heads(4, 2, 16), {63, 65, 17}}, AttentionCase{heads(2, 1, 20), {1111, 70}}}) {
    const AttentionProblem x(c, random);
    for (const DType dtype : kFloats) {
      const Inputs in(x, dtype);
      expect_same_bits_for_any_threads([&] { return in.run(); });
    }
  }
}

// Sequence b of a batch alone.
AttentionProblem only(const AttentionProblem& x, size_t b) {
  AttentionProblem one = x;
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

void append(AttentionResults& to, const AttentionResults& from) {
  for (const auto member : kAttentionResults) {
    (to.*member).insert((to.*member).end(), (from.*member).begin(), (from.*member).end());
  }
}

TEST_P(Attention, PackedSequencesAreAsAloneInAnyOrder) {
  Random random;
  SCOPED_TRACE(random.trace());
  const AttentionProblem x({heads(4, 2, 12), {5, 64, 0, 130, 1, 600}}, random);
  for (const DType dtype : kFloats) {
    AttentionResults alone;
    AttentionResults alone_permuted;
    AttentionProblem permuted = only(x, 3);
    append(alone_permuted, run(permuted, dtype));
    for (size_t b = 0; b + 1 < x.offsets.size(); ++b) {
      const AttentionProblem one = only(x, b);
      const AttentionResults r = run(one, dtype);
      append(alone, r);
      if (b == 3) continue;
      append(alone_permuted, r);
      for (const auto member :
           {&AttentionProblem::q, &AttentionProblem::k, &AttentionProblem::v, &AttentionProblem::dy}) {
        (permuted.*member).insert((permuted.*member).end(), (one.*member).begin(), (one.*member).end());
      }
      permuted.offsets.push_back(permuted.offsets.back() + one.rows());
    }
    expect_equal(run(x, dtype), alone);
    expect_equal(run(permuted, dtype), alone_permuted);
  }
}

TEST_P(Attention, EarlierRowsDoNotSeeLaterOnes) {
  Random random;
  SCOPED_TRACE(random.trace());
  const AttentionProblem x({heads(2, 1, 8), {150}}, random);
  const Values before = run(x, DType::f32).y;
  for (const int64_t row : {1, 7, 63, 64, 100, 149}) {
    AttentionProblem changed = x;
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
TEST_P(Attention, LargeScoresAndNan) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    AttentionProblem x({heads(1, 1, 16), {90}}, random);
    for (double& e : x.q) e *= 8192;
    const Values want = attention_reference(x).y;
    expect_close(run(x, dtype).y, want, {dtype == DType::f64 ? 1e-9 : 5e-2, largest(want)}, "y");
    for_each_target_here([&](bool) {
      AttentionProblem bad = x;
      bad.q[40 * 16 + 3] = std::numeric_limits<double>::quiet_NaN();
      const Values y = run(bad, dtype).y;
      for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 16 == 40) << i;
    });
  }
}

TEST_P(Attention, RefusesShapesThatDoNotFit) {
  Random random;
  const Inputs in(AttentionProblem({heads(4, 2, 8), {5}}, random), DType::f32);
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
