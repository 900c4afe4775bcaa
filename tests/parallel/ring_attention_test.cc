// Ring attention against attention of all rows on one rank, and the bytes that go around.
#include "phalanx/parallel/ring_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/parallel/context_rows.h"

namespace phalanx {
namespace {

struct Case {
  const char* name;
  int ring;
  AttentionConfig config;
  std::vector<int64_t> lengths;  // of the sequences
};

Tensor normal(std::mt19937& random, const Shape& shape) {
  std::normal_distribution<double> draw;
  const Tensor t = Tensor::empty(shape, DType::f64);
  for (double& x : t.span<double>()) x = draw(random);
  return t;
}

// The whole problem, the same on every rank.
struct Problem {
  AttentionConfig config;
  Tensor offsets;
  AttentionBackward in;

  Problem(const Case& c, unsigned seed) : config(c.config) {
    std::vector<int64_t> ends = {0};
    for (const int64_t n : c.lengths) ends.push_back(ends.back() + n);
    offsets = Tensor::of(Shape{std::ssize(ends)}, std::span<const int64_t>(ends));
    std::mt19937 random(seed);
    const Shape q = {ends.back(), config.heads * config.head_dim};
    const Shape k = {ends.back(), config.kv_heads * config.head_dim};
    const Shape v = {ends.back(), config.kv_heads * config.values()};
    const Shape y = {ends.back(), config.heads * config.values()};
    in = {normal(random, y), normal(random, q), normal(random, k), normal(random, v), {}};
  }
};

void expect_rows(const Tensor& got, const Tensor& all, const RowRuns& rows, const char* what) {
  const Tensor want = rows_in(all, rows);
  ASSERT_EQ(got.shape(), want.shape()) << what;
  double largest = 0;
  for (const double x : all.span<double>()) largest = std::max(largest, std::abs(x));
  for (int64_t i = 0; i < got.numel(); ++i) {
    ASSERT_NEAR(got.data<double>()[i], want.data<double>()[i], 1e-13 * largest) << what << ", element " << i;
  }
}

class RingAttentionTest : public ::testing::TestWithParam<Case> {};

TEST_P(RingAttentionTest, EqualsOneRank) {
  const Case& c = GetParam();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  run_thread_ranks({.ranks = c.ring}, [&](Group& world) {
    const Problem x(c, seed);
    const Attended out = attention(x.in.q_THd, x.in.k_SGd, x.in.v_SGd, x.offsets, x.config);
    const AttentionGradients d =
        attention_backward(x.in.dy_THd, x.in.q_THd, x.in.k_SGd, x.in.v_SGd, out, x.offsets, x.config);

    const RowRuns rows = ring_rows(x.in.q_THd.rows(), c.ring, world.rank());
    AttentionBackward own = {rows_in(x.in.dy_THd, rows),
                             rows_in(x.in.q_THd, rows),
                             rows_in(x.in.k_SGd, rows),
                             rows_in(x.in.v_SGd, rows),
                             {}};
    RingAttention ring(world);
    own.forward = run(ring.forward(own.q_THd, own.k_SGd, own.v_SGd, {x.offsets}, x.config));
    expect_rows(own.forward.y_THd, out.y_THd, rows, "y");
    expect_rows(own.forward.log_sum_exp_TH, out.log_sum_exp_TH, rows, "log-sum-exp");
    const auto block = static_cast<int64_t>(own.k_SGd.bytes() + own.v_SGd.bytes());
    EXPECT_EQ(world.traffic().sent, block * (c.ring - 1));

    const AttentionGradients got = run(ring.backward(own, {x.offsets}, x.config));
    expect_rows(got.dq_THd, d.dq_THd, rows, "dq");
    expect_rows(got.dk_TGd, d.dk_TGd, rows, "dk");
    expect_rows(got.dv_TGd, d.dv_TGd, rows, "dv");
    const int64_t all = c.ring == 1 ? 0 : block * (3 * c.ring - 2);
    EXPECT_EQ(world.traffic().sent, all);
    EXPECT_EQ(world.traffic().received, all);
  });
}

AttentionConfig heads(int heads, int kv_heads, int64_t head_dim, int64_t value_dim = 0) {
  return {heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)), value_dim};
}

// One long sequence; documents of unequal length, some empty, of which some blocks are seen by nobody; a row
// a rank, and none; narrower and wider values.
INSTANTIATE_TEST_SUITE_P(
    Sizes, RingAttentionTest,
    ::testing::Values(Case{"one_rank", 1, heads(2, 1, 6), {5, 9}}, Case{"two", 2, heads(2, 2, 5), {150}},
                      Case{"three_long", 3, heads(3, 1, 8), {1203}},
                      Case{"documents", 4, heads(4, 2, 7), {33, 0, 1, 190, 4}},
                      Case{"short_documents", 4, heads(2, 1, 3), {3, 3, 2, 5, 1, 0, 2, 8}},
                      Case{"five", 5, heads(2, 2, 4), {64, 101}},
                      Case{"narrow_values", 3, heads(4, 2, 6, 3), {70, 29, 6}},
                      Case{"wide_values", 4, heads(2, 2, 3, 7), {5, 131}},
                      Case{"a_row_a_rank", 8, heads(1, 1, 2), {3, 5}},
                      Case{"no_rows", 2, heads(2, 1, 4), {}}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx
