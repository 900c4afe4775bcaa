// Attention of whole sequences in bf16.
#include <numeric>

#include "tests/ops/attention_bf16.h"

namespace phalanx::test {
namespace {

TEST_F(AttentionBf16, IsThatOfF32Rounded) {
  for (const AttentionCase& c : bf16_attention_cases()) {
    const Inputs in(c, random_);
    SCOPED_TRACE(in.x.trace());
    const Outputs got = run(in);
    EXPECT_EQ(got.forward.y_THd.dtype(), DType::bf16);
    EXPECT_EQ(got.forward.log_sum_exp_TH.dtype(), DType::f32);
    EXPECT_EQ(got.gradients.dq_THd.dtype(), DType::bf16);
    expect_right(in, got);
  }
}

TEST_F(AttentionBf16, IsThatOfF32RoundedAtAnyLengths) {
  for (int round = 0; round < 10; ++round) {
    const int kv_heads = static_cast<int>(random_.integer(1, 2));
    const int group = static_cast<int>(random_.integer(1, 4));
    const int64_t value_dim = 8 * random_.integer(1, 16);
    const int64_t head_dim = 8 * random_.integer(1, value_dim > 64 ? 24 : 16);
    AttentionCase c = {heads(kv_heads * group, kv_heads, head_dim, value_dim), {}};
    for (int64_t left = random_.integer(1, 600); left > 0; left -= c.lengths.back()) {
      c.lengths.push_back(random_.integer(0, left));
      if (random_.integer(0, 5) == 0) c.lengths.back() = left;
    }
    const Inputs in(c, random_);
    SCOPED_TRACE(in.x.trace());
    expect_right(in, run(in));
  }
}

TEST_F(AttentionBf16, WithoutDeterminismItIsStillRight) {
  for (const AttentionCase& c : bf16_attention_cases()) {
    const Inputs in(c, random_);
    SCOPED_TRACE(in.x.trace());
    AttentionConfig config = in.x.config;
    config.deterministic = false;
    expect_right(in, run(in, config));
  }
}

// All scores far below zero, so that e to the log-sum-exp is nearly zero: what stands behind a sequence's end
// must not come in.
TEST_F(AttentionBf16, ScoresMayBeFarBelowZero) {
  for (const bool deterministic : {true, false}) {
    for (const auto& lengths : {std::vector<int64_t>{64, 64}, {192}, {128}, {3, 130}}) {
      AttentionProblem x({heads(2, 1, 64), lengths}, random_);
      for (size_t i = 0; i < x.q.size(); ++i) x.q[i] = 4 + 0.1 * x.q[i];
      for (size_t i = 0; i < x.k.size(); ++i) x.k[i] = -4 + 0.1 * x.k[i];
      x.config.deterministic = deterministic;
      const Inputs in(x);
      SCOPED_TRACE(in.x.trace());
      const Outputs got = run(in);
      EXPECT_LT(largest(values(got.gradients.dk_TGd)), 1e3);
      expect_right(in, got);
    }
  }
}

TEST_F(AttentionBf16, GivesTheSameBitsEachTime) {
  for (const AttentionCase& c :
       {AttentionCase{heads(8, 2, 64), {2048, 2048}}, AttentionCase{heads(4, 4, 128), {3000, 70, 1500}},
        AttentionCase{heads(2, 2, 192, 128), {1024}}}) {
    const Inputs in(c, random_);
    const std::vector<Tensor> first = run(in).all();
    for (int round = 0; round < 10; ++round) {
      const std::vector<Tensor> again = run(in).all();
      for (size_t i = 0; i < first.size(); ++i) {
        EXPECT_TRUE(same_bits(first[i], again[i])) << in.x.trace() << ", " << kAttentionNames[i];
      }
    }
  }
}

// Row by row, by their Euclidean norms: both round the same numbers at the same places, to within 2⁻⁸, but
// for some that lie between two of bf16. A row that should be zero has what f32 leaves.
void expect_alike(const Tensor& a, const Tensor& b, const char* what) {
  const Values x = values(a);
  const Values y = values(b);
  const auto columns = static_cast<size_t>(a.dim(1));
  const auto norm = [](const Values& of) {
    return std::sqrt(std::inner_product(of.begin(), of.end(), of.begin(), 0.0));
  };
  const double floor = 1e-3 * norm(y) / std::sqrt(static_cast<double>(a.rows()));
  for (size_t row = 0; row < x.size(); row += columns) {
    const Values want(y.begin() + static_cast<int64_t>(row), y.begin() + static_cast<int64_t>(row + columns));
    Values difference(columns);
    for (size_t i = 0; i < columns; ++i) difference[i] = x[row + i] - want[i];
    if (norm(difference) <= 0x1p-7 * norm(want) + floor) continue;
    ADD_FAILURE() << what << ", row " << row / columns << ", differs by " << norm(difference) << " of "
                  << norm(want);
    return;
  }
}

// Gradients of scores that do not fit at once: sequences, and heads of one sequence, come one after the
// other. Without determinism they need no such memory, and nothing is cut.
TEST_F(AttentionBf16, LongSequencesAreCut) {
  for (const AttentionCase& c :
       {AttentionCase{heads(16, 4, 64), {4096, 4096, 4096}}, AttentionCase{heads(16, 4, 64), {8192}},
        AttentionCase{heads(16, 4, 64), {8100, 3000, 4001, 3999, 10}}}) {
    int64_t rows = 0;
    std::vector<int64_t> offsets = {0};
    for (const int64_t n : c.lengths) offsets.push_back(rows += n);
    const Tensor q = draw({rows, c.config.heads * c.config.head_dim}, 2);
    const Tensor dy = draw(q.shape());
    const Tensor k = draw({rows, c.config.kv_heads * c.config.head_dim});
    const Tensor v = draw(k.shape());
    const Tensor ends = indices64({std::ssize(offsets)}, offsets);
    const Attended out = attention(q, k, v, ends, c.config);
    AttentionConfig config = c.config;
    const AttentionGradients whole = attention_backward(dy, q, k, v, out, ends, config);
    config.deterministic = false;
    const AttentionGradients other = attention_backward(dy, q, k, v, out, ends, config);
    expect_alike(whole.dq_THd, other.dq_THd, "dq");
    expect_alike(whole.dk_TGd, other.dk_TGd, "dk");
    expect_alike(whole.dv_TGd, other.dv_TGd, "dv");
  }
}

// Also where sequences are ragged: their tables are kept.
TEST_F(AttentionBf16, ASteadyStateStepAllocatesNothing) {
  const Inputs even({heads(4, 2, 64), {256, 256}}, random_);
  const Inputs ragged({heads(4, 2, 64), {256, 100, 1}}, random_);
  const auto step = [&] {
    (void)run(even);
    (void)run(ragged);
  };
  step();
  step();
  const MemoryStats warm = stream_->memory();
  for (int i = 0; i < 10; ++i) step();
  EXPECT_EQ(stream_->memory().system_allocations, warm.system_allocations);
  EXPECT_EQ(stream_->memory().in_use, warm.in_use);
  EXPECT_EQ(stream_->memory().peak, warm.peak);
}

// Forward takes wider heads than backward.
TEST_F(AttentionBf16, ForwardTakesWiderHeads) {
  for (const AttentionCase& c :
       {AttentionCase{heads(2, 1, 256), {128, 65}}, AttentionCase{heads(1, 1, 192, 64), {300}},
        AttentionCase{heads(1, 1, 64, 160), {256}}}) {
    const Inputs in(c, random_);
    SCOPED_TRACE(in.x.trace());
    const Attended got = attention(in.q, in.k, in.v, in.offsets, c.config);
    AttentionResults kept;
    kept.y = values(got.y_THd);
    kept.log_sum_exp = values(got.log_sum_exp_TH);
    const Attended want = attention(wide(in.q), wide(in.k), wide(in.v), in.offsets, c.config);
    expect_within(kept.y, values(want.y_THd), magnitudes(in.x, kept, kOfFactors).y, 2.25 * 0x1p-8, "y");
    EXPECT_THROW((void)attention_backward(in.dy, in.q, in.k, in.v, got, in.offsets, c.config), Error);
  }
}

TEST_F(AttentionBf16, WhatCudnnHasNotIsAnError) {
  for (const AttentionConfig& config : {heads(2, 2, 12), heads(2, 2, 64, 20), heads(2, 2, 264)}) {
    const Tensor q = draw({8, config.heads * config.head_dim});
    const Tensor v = draw({8, config.heads * config.values()});
    const Tensor offsets = indices64({2}, {0, 8});
    try {
      (void)attention(q, q, v, offsets, config);
      ADD_FAILURE() << config.head_dim << " and " << config.values();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("multiple of 8"), std::string::npos) << error.what();
    }
  }
  const Tensor q = draw({8, 64});
  EXPECT_THROW((void)attention(q, wide(q), q, indices64({2}, {0, 8}), heads(1, 1, 64)), BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
