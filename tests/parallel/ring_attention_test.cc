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

// Of whole tensors, the rows of a slice that a rank of the ring has.
struct SliceRows {
  RowRuns of_slice;
  RowRuns own;

  Tensor of(const Tensor& all) const { return rows_in(rows_in(all, of_slice), own); }
};

// Slice by slice, and back from the last one, each sequence cut into thirds: as whole, and in the order in
// which a second forward (recomputation) precedes each backward.
TEST(RingAttention, SlicesSeeThoseBeforeThem) {
  constexpr int kSlices = 3;
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const int ranks : {1, 2, 4}) {
    run_thread_ranks({.ranks = ranks}, [&](Group& world) {
      const Problem x({"", ranks, {4, 2, 6, 0.4, 5}, {24, 0, 60, 12}}, seed);
      const auto ends = x.offsets.span<const int64_t>();
      const Attended out = attention(x.in.q_THd, x.in.k_SGd, x.in.v_SGd, x.offsets, x.config);
      const AttentionGradients d =
          attention_backward(x.in.dy_THd, x.in.q_THd, x.in.k_SGd, x.in.v_SGd, out, x.offsets, x.config);
      RingAttention ring(world);
      KvHistory history;
      std::vector<SliceRows> rows;
      std::vector<SequenceRows> sequences;
      std::vector<AttentionBackward> slices;
      for (int s = 0; s < kSlices; ++s) {
        RowRuns runs;
        for (size_t b = 0; b + 1 < ends.size(); ++b) {
          const int64_t third = (ends[b + 1] - ends[b]) / kSlices;
          if (third > 0) runs.push_back({ends[b] + s * third, ends[b] + (s + 1) * third});
        }
        rows.push_back({runs, ring_rows(ends.back() / kSlices, ranks, world.rank())});
        sequences.push_back({offsets_in(x.offsets, runs), &history, s});
        const auto own = [&](const Tensor& all) { return rows.back().of(all); };
        slices.push_back({own(x.in.dy_THd), own(x.in.q_THd), own(x.in.k_SGd), own(x.in.v_SGd), {}});
      }
      const auto forward = [&](size_t s) {
        AttentionBackward& in = slices[s];
        in.forward = run(ring.forward(in.q_THd, in.k_SGd, in.v_SGd, sequences[s], x.config));
      };
      for (size_t s = 0; s < kSlices; ++s) forward(s);
      const auto block = static_cast<int64_t>(slices[0].k_SGd.bytes() + slices[0].v_SGd.bytes());
      EXPECT_EQ(world.traffic().sent, (1 + 2 + 3) * block * (ranks - 1));
      for (size_t s = kSlices; s-- > 0;) {
        forward(s);
        const AttentionGradients got = run(ring.backward(slices[s], sequences[s], x.config));
        const auto expect = [&](const Tensor& part, const Tensor& all, const char* what) {
          const Tensor of_slice = rows_in(all, rows[s].of_slice);
          expect_rows(part, of_slice, rows[s].own, what);
        };
        expect(slices[s].forward.y_THd, out.y_THd, "y");
        expect(slices[s].forward.log_sum_exp_TH, out.log_sum_exp_TH, "log-sum-exp");
        expect(got.dq_THd, d.dq_THd, "dq");
        expect(got.dk_TGd, d.dk_TGd, "dk");
        expect(got.dv_TGd, d.dv_TGd, "dv");
      }
      EXPECT_TRUE(history.slices().empty());
    });
  }
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
