// Attention in bf16 in parts: keys that come one block after the other.
#include <algorithm>
#include <limits>

#include "tests/ops/attention_bf16.h"

namespace phalanx::test {
namespace {

// Rows cut at random, and dealt out in turn.
std::vector<RowRuns> shares(int64_t rows, int owners, Random& random) {
  std::vector<int64_t> cuts = {0, rows};
  for (int i = 0; i < 2 * owners; ++i) cuts.push_back(random.integer(0, rows));
  std::ranges::sort(cuts);
  std::vector<RowRuns> out(static_cast<size_t>(owners));
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    out[i % out.size()].push_back({cuts[i], cuts[i + 1]});
  }
  return out;
}

Tensor rows_of(const Tensor& all, const RowRuns& runs) {
  int64_t rows = 0;
  for (const RowRun& run : runs) rows += run.rows();
  const Tensor own = Tensor::empty(all.shape().with_rows(rows), all.dtype(), all.device());
  int64_t at = 0;
  for (const RowRun& run : runs) {
    copy_into(own.slice(at, at + run.rows()), all.slice(run.begin, run.end));
    at += run.rows();
  }
  return own;
}

void put_rows(const Tensor& all, const RowRuns& runs, const Tensor& own) {
  int64_t at = 0;
  for (const RowRun& run : runs) {
    copy_into(all.slice(run.begin, run.end), own.slice(at, at + run.rows()));
    at += run.rows();
  }
}

// Owners of rows meet each other's keys; sums in f32 or bf16.
struct Meeting {
  AttentionBackward in;
  Attended sums;
  AttentionGradients gradients;
};

TEST_F(AttentionBf16, PartsAddUpToTheWhole) {
  constexpr int kOwners = 3;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const AttentionCase& c :
         {AttentionCase{heads(4, 2, 64), {256, 256}}, AttentionCase{heads(2, 2, 192, 128), {201, 5, 64}},
          AttentionCase{heads(4, 1, 128), {333}}, AttentionCase{heads(2, 2, 64), {1, 90, 0, 129, 1}},
          AttentionCase{heads(2, 2, 64), {}}, AttentionCase{heads(3, 1, 72), {100, 31}}}) {
      const Inputs in(c, random_);
      SCOPED_TRACE(in.x.trace());
      const std::vector<RowRuns> own = shares(in.x.rows(), kOwners, random_);
      const auto zeros_like = [&](const Tensor& t) { return zeros(t.shape(), dtype); };
      std::vector<Meeting> parts;
      for (const RowRuns& runs : own) {
        Meeting& m = parts.emplace_back();
        m.in = {rows_of(in.dy, runs), rows_of(in.q, runs), rows_of(in.k, runs), rows_of(in.v, runs), {}};
        m.sums = attended_nothing(m.in.q_THd, c.config);
        EXPECT_EQ(m.sums.y_THd.dtype(), DType::f32);
        if (dtype == DType::bf16) m.sums.y_THd = zeros_like(m.sums.y_THd);
        m.gradients = {zeros_like(m.in.q_THd), zeros_like(m.in.k_SGd), zeros_like(m.in.v_SGd)};
      }
      const auto for_each_meeting = [&](auto f) {
        for (size_t i = 0; i < parts.size(); ++i) {
          for (size_t j = 0; j < parts.size(); ++j) {
            f(parts[i], parts[j], attention_tiles(in.x.offsets, own[i], own[j]));
          }
        }
      };
      for_each_meeting([&](const Meeting& a, const Meeting& b, const AttentionTiles& tiles) {
        attention_into(a.sums, a.in.q_THd, b.in.k_SGd, b.in.v_SGd, tiles, c.config);
      });
      for_each_meeting([&](const Meeting& a, const Meeting& b, const AttentionTiles& tiles) {
        AttentionBackward of = a.in;
        of.forward = {narrow_if_wide(a.sums.y_THd), a.sums.log_sum_exp_TH};
        of.k_SGd = b.in.k_SGd;
        of.v_SGd = b.in.v_SGd;
        attention_backward_into({a.gradients.dq_THd, b.gradients.dk_TGd, b.gradients.dv_TGd}, of, tiles,
                                c.config);
      });
      const Outputs got = {{zeros_like(in.dy), zeros({in.x.rows(), c.config.heads})},
                           {zeros_like(in.q), zeros_like(in.k), zeros_like(in.v)}};
      for (size_t i = 0; i < parts.size(); ++i) {
        put_rows(got.forward.y_THd, own[i], parts[i].sums.y_THd);
        put_rows(got.forward.log_sum_exp_TH, own[i], parts[i].sums.log_sum_exp_TH);
        put_rows(got.gradients.dq_THd, own[i], parts[i].gradients.dq_THd);
        put_rows(got.gradients.dk_TGd, own[i], parts[i].gradients.dk_TGd);
        put_rows(got.gradients.dv_TGd, own[i], parts[i].gradients.dv_TGd);
      }
      // Each addition to a sum in bf16 rounds it; a row may meet every other run of rows.
      expect_right(in, got, dtype == DType::bf16 ? 2 * kOwners : 0);
    }
  }
}

TEST_F(AttentionBf16, RowsThatSeeNothingStayEmpty) {
  const AttentionConfig config = heads(2, 1, 64);
  const Tensor q = draw({70, 128});
  const Tensor k = draw({30, 64});
  const Attended sums = attended_nothing(q, config);
  const std::vector<int64_t> offsets = {0, 40, 100};
  const RowRuns queries = {{30, 100}};
  const RowRuns keys = {{0, 30}};
  attention_into(sums, q, k, k, attention_tiles(offsets, queries, keys), config);
  const Values y = values(sums.y_THd);
  const Values log_sum_exp = values(sums.log_sum_exp_TH);
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i] == 0, i >= 10 * 128) << i;
  for (size_t i = 0; i < log_sum_exp.size(); ++i) {
    EXPECT_EQ(log_sum_exp[i] == -std::numeric_limits<double>::infinity(), i >= 10 * 2) << i;
  }
}

}  // namespace
}  // namespace phalanx::test
