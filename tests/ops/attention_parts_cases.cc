// Attention in parts: rows shared out at random, blocks of keys one after the other, against its definition.
#include "phalanx/ops/attention_tiles.h"

#include <algorithm>
#include <limits>

#include "tests/ops/attention_magnitudes.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

// By owner, the runs of rows that it has.
using Shares = std::vector<RowRuns>;

// Runs of random lengths (some empty), each to a random owner (some have none).
Shares random_shares(int64_t rows, int owners, Random& random) {
  std::vector<int64_t> cuts = {0, rows};
  for (int i = 0; i < 2 * owners; ++i) cuts.push_back(random.integer(0, rows));
  std::ranges::sort(cuts);
  Shares shares(static_cast<size_t>(owners));
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    shares[static_cast<size_t>(random.integer(0, owners - 1))].push_back({cuts[i], cuts[i + 1]});
  }
  return shares;
}

std::string trace(const Shares& shares) {
  std::string text;
  for (const RowRuns& runs : shares) {
    for (const RowRun& run : runs) text += format(" {}-{}", run.begin, run.end);
    text += ";";
  }
  return text;
}

Values rows_of(const Values& all, int64_t stride, const RowRuns& runs) {
  Values own;
  for (const RowRun& run : runs) {
    own.insert(own.end(), all.begin() + run.begin * stride, all.begin() + run.end * stride);
  }
  return own;
}

void put_rows(Values& all, int64_t stride, const RowRuns& runs, const Tensor& own) {
  const Values from = values(own);
  auto at = from.begin();
  for (const RowRun& run : runs) {
    std::copy(at, at + run.rows() * stride, all.begin() + run.begin * stride);
    at += run.rows() * stride;
  }
}

// What one owner has of a problem.
struct Part {
  RowRuns runs;
  AttentionBackward in;
  AttentionGradients sums;

  Part(const AttentionProblem& x, const RowRuns& own, DType dtype) : runs(own) {
    int64_t rows = 0;
    for (const RowRun& run : runs) rows += run.rows();
    const auto take = [&](const Values& all, int64_t stride) {
      return here(tensor({rows, stride}, dtype, rows_of(all, stride, runs)));
    };
    in = {take(x.dy, x.output_stride()),
          take(x.q, x.query_stride()),
          take(x.k, x.key_stride()),
          take(x.v, x.value_stride()),
          {}};
    in.forward = attended_nothing(in.q_THd, x.config);
    const auto zeros = [&](const Tensor& like) { return here(Tensor::zeros(like.shape(), dtype)); };
    sums = {zeros(in.q_THd), zeros(in.k_SGd), zeros(in.v_SGd)};
  }
};

// Each owner meets the blocks of all others, in the order of a ring.
template <class F>
void for_each_meeting(std::vector<Part>& parts, const std::vector<int64_t>& offsets, F f) {
  for (size_t step = 0; step < parts.size(); ++step) {
    for (size_t i = 0; i < parts.size(); ++i) {
      Part& other = parts[(i + parts.size() - step) % parts.size()];
      f(parts[i], other, attention_tiles(offsets, parts[i].runs, other.runs));
    }
  }
}

std::vector<Part> run_parts(const AttentionProblem& x, const Shares& shares, DType dtype) {
  std::vector<Part> parts;
  for (const RowRuns& runs : shares) parts.emplace_back(x, runs, dtype);
  for_each_meeting(parts, x.offsets, [&](const Part& a, const Part& b, const AttentionTiles& tiles) {
    attention_into(a.in.forward, a.in.q_THd, b.in.k_SGd, b.in.v_SGd, tiles, x.config);
  });
  for_each_meeting(parts, x.offsets, [&](const Part& a, const Part& b, const AttentionTiles& tiles) {
    AttentionBackward in = a.in;
    in.k_SGd = b.in.k_SGd;
    in.v_SGd = b.in.v_SGd;
    attention_backward_into({a.sums.dq_THd, b.sums.dk_TGd, b.sums.dv_TGd}, in, tiles, x.config);
  });
  return parts;
}

AttentionResults run(const AttentionProblem& x, const Shares& shares, DType dtype) {
  AttentionResults out = {Values(x.dy.size()), Values(static_cast<size_t>(x.rows() * x.config.heads)),
                          Values(x.q.size()), Values(x.k.size()), Values(x.v.size())};
  for (const Part& p : run_parts(x, shares, dtype)) {
    put_rows(out.y, x.output_stride(), p.runs, p.in.forward.y_THd);
    put_rows(out.log_sum_exp, x.config.heads, p.runs, p.in.forward.log_sum_exp_TH);
    put_rows(out.dq, x.query_stride(), p.runs, p.sums.dq_THd);
    put_rows(out.dk, x.key_stride(), p.runs, p.sums.dk_TGd);
    put_rows(out.dv, x.value_stride(), p.runs, p.sums.dv_TGd);
  }
  return out;
}

// Short sequences, so that owners meet blocks of which they see nothing, and one that every block has some
// of.
std::vector<AttentionCase> cases() {
  return {{heads(2, 2, 8), {0, 1, 2, 0, 3}}, {heads(4, 2, 16), {63, 65, 17}}, {heads(3, 1, 5), {33, 1, 170}},
          {heads(6, 3, 24), {329, 31}},      {heads(2, 1, 13), {9, 2047}},    {heads(2, 2, 7), {}},
          {heads(4, 4, 24, 16), {70, 1}},    {heads(2, 1, 5, 18), {600, 3}}};
}

TEST_P(AttentionParts, BlocksAddUpToTheDefinition) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const AttentionCase& c : cases()) {
    const AttentionProblem x(c, random);
    const AttentionResults want = attention_reference(x);
    for (const int owners : {1, 2, 5}) {
      const Shares shares = random_shares(x.rows(), owners, random);
      SCOPED_TRACE(x.trace() + ", shares" + trace(shares));
      for (const DType dtype : kFloats) expect_attention(x, run(x, shares, dtype), want, dtype);
    }
  }
}

TEST_P(AttentionParts, BlocksAddUpOnEveryTarget) {
  Random random;
  SCOPED_TRACE(random.trace());
  const AttentionProblem x({heads(4, 2, 11, 6), {70, 131}}, random);
  const Shares shares = random_shares(x.rows(), 3, random);
  SCOPED_TRACE(trace(shares));
  const AttentionResults want = attention_reference(x);
  for (const DType dtype : kFloats) {
    for_each_target_here([&](bool) { expect_attention(x, run(x, shares, dtype), want, dtype); });
  }
}

TEST_P(AttentionParts, BitsDoNotDependOnTheNumberOfThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const AttentionProblem x({heads(2, 1, 20), {2111, 70}}, random);
  const Shares shares = random_shares(x.rows(), 2, random);
  SCOPED_TRACE(trace(shares));
  for (const DType dtype : kFloats) {
    expect_same_bits_for_any_threads([&] {
      std::vector<Tensor> out;
      for (const Part& p : run_parts(x, shares, dtype)) {
        out.insert(out.end(), {p.in.forward.y_THd, p.in.forward.log_sum_exp_TH, p.sums.dq_THd, p.sums.dk_TGd,
                               p.sums.dv_TGd});
      }
      return out;
    });
  }
}

// Queries 30 … 99 against keys 0 … 29, which only the sequence up to 40 has rows of.
TEST_P(AttentionParts, RowsThatSeeNothingStayEmpty) {
  Random random;
  SCOPED_TRACE(random.trace());
  const AttentionProblem x({heads(2, 1, 6), {40, 60}}, random);
  const RowRuns queries = {{30, 100}};
  const RowRuns keys = {{0, 30}};
  for (const DType dtype : kFloats) {
    const Part a(x, queries, dtype);
    const Part b(x, keys, dtype);
    attention_into(a.in.forward, a.in.q_THd, b.in.k_SGd, b.in.v_SGd,
                   attention_tiles(x.offsets, queries, keys), x.config);
    const Values y = values(a.in.forward.y_THd);
    const Values log_sum_exp = values(a.in.forward.log_sum_exp_TH);
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i] == 0, i >= 10 * 12) << i;
    for (size_t i = 0; i < log_sum_exp.size(); ++i) EXPECT_EQ(std::isfinite(log_sum_exp[i]), i < 10 * 2) << i;
    EXPECT_EQ(log_sum_exp.back(), -std::numeric_limits<double>::infinity());
  }
}

// Calls f(i, j) for each pair of rows that meet in a tile.
template <class F>
void for_each_pair(const AttentionTiles& tiles, const RowRuns& queries, const RowRuns& keys, F f) {
  const auto numbers = [](const RowRuns& runs) {
    std::vector<int64_t> rows;
    for (const RowRun& run : runs) {
      for (int64_t i = run.begin; i < run.end; ++i) rows.push_back(i);
    }
    return rows;
  };
  const std::vector<int64_t> query = numbers(queries);
  const std::vector<int64_t> key = numbers(keys);
  for (const auto* list : {&tiles.squares, &tiles.rectangles}) {
    for (const AttentionTile& t : *list) {
      for (int64_t i = 0; i < t.queries; ++i) {
        for (int64_t j = 0; j < (t.causal ? i + 1 : t.keys); ++j) {
          f(query.at(static_cast<size_t>(t.first_query + i)), key.at(static_cast<size_t>(t.first_key + j)));
        }
      }
    }
  }
}

// Every pair that the mask lets meet is in one tile of one owner and block; no other pair is.
TEST_P(AttentionParts, EveryPairMeetsOnce) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (int round = 0; round < 50; ++round) {
    std::vector<int64_t> offsets = {0};
    for (int b = 0; b < 5; ++b) offsets.push_back(offsets.back() + random.integer(0, 9));
    const int64_t rows = offsets.back();
    const Shares shares = random_shares(rows, 3, random);
    std::vector<int> met(static_cast<size_t>(rows * rows));
    std::vector<int> want(met.size());
    int64_t pairs = 0;
    for (const RowRuns& queries : shares) {
      for (const RowRuns& keys : shares) {
        const AttentionTiles tiles = attention_tiles(offsets, queries, keys);
        pairs += tiles.pairs();
        for_each_pair(tiles, queries, keys,
                      [&](int64_t i, int64_t j) { ++met[static_cast<size_t>(i * rows + j)]; });
      }
    }
    for (size_t b = 0; b + 1 < offsets.size(); ++b) {
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
        for (int64_t j = offsets[b]; j <= i; ++j) want[static_cast<size_t>(i * rows + j)] = 1;
      }
    }
    EXPECT_EQ(met, want) << trace(shares);
    EXPECT_EQ(pairs, std::ranges::count(want, 1));
  }
}

}  // namespace
}  // namespace phalanx::test
