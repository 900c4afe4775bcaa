// Decoding's attention where only GPUs have it: bf16, cut over the context; and over segments there.
#include <algorithm>
#include <numeric>

#include "phalanx/ops/at_rest.h"
#include "phalanx/ops/decode_attention.h"
#include "phalanx/ops/matmul.h"
#include "tests/ops/bf16_on_gpu.h"

namespace phalanx::test {
namespace {

class DecodeAttentionOnGpu : public Bf16OnGpu {};

AttentionConfig heads(int heads, int kv_heads, int64_t head_dim, int64_t value_dim = 0) {
  return {heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)), value_dim};
}

// The same numbers on the host, in what bf16 is computed in.
Tensor on_host(const Tensor& t) {
  const Tensor host = t.to(kCpu);
  if (t.dtype() != DType::bf16) return host;
  const Tensor f32 = Tensor::empty(t.shape(), DType::f32);
  widen_into(f32, host);
  return f32;
}

std::vector<KvSegment> on_host(const std::vector<KvSegment>& segments) {
  std::vector<KvSegment> out;
  for (const KvSegment& s : segments) {
    out.push_back({on_host(s.k_SGd), on_host(s.v_SGd), s.first_position});
  }
  return out;
}

TEST_F(DecodeAttentionOnGpu, OverSegmentsItIsThatOfTheCpu) {
  for (const AttentionConfig& c : {heads(1, 1, 1), heads(4, 2, 16), heads(6, 1, 13), heads(8, 2, 64),
                                   heads(4, 4, 24, 16), heads(2, 1, 3, 7), heads(2, 1, 256)}) {
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      const auto drawn = [&](const Shape& shape, double deviation) {
        return dtype == DType::bf16 ? draw(shape, deviation)
                                    : random_.tensor(shape, dtype, deviation).to(kGpu);
      };
      const Tensor q = drawn({6, c.heads * c.head_dim}, 2);
      std::vector<int32_t> at;
      for (int i = 0; i < 6; ++i) at.push_back(static_cast<int32_t>(random_.integer(0, 300)));
      at[0] = 0;
      std::vector<KvSegment> segments;
      for (const int64_t longest : {0, 3, 70, 200, 20, 1}) {
        const int64_t rows = random_.integer(longest / 2, longest);
        segments.push_back({drawn({rows, c.kv_heads * c.head_dim}, 1),
                            drawn({rows, c.kv_heads * c.values()}, 1), random_.integer(0, 350)});
      }
      const Tensor got = attention_over_segments(q, indices(at).to(kGpu), segments, c);
      const Values want = values(attention_over_segments(on_host(q), indices(at), on_host(segments), c));
      EXPECT_EQ(got.dtype(), dtype);
      const double ulps = dtype == DType::f64 ? 400 : dtype == DType::f32 ? 40 : 1;
      expect_close(values(got), want, within(ulps, dtype, dtype == DType::bf16 ? 1e-3 : largest(want)),
                   format("{} heads of {} columns, {}", c.heads, c.head_dim, dtype_name(dtype)));
    }
  }
  const AttentionConfig c = heads(2, 1, 8);
  EXPECT_EQ(values(attention_over_segments(draw({2, 16}), indices({0, 5}).to(kGpu), {}, c)), Values(32, 0));
}

struct Case {
  AttentionConfig config;
  std::vector<int32_t> lengths;
  int64_t capacity;  // rows of a sequence that the table has pages for
};

// Pages that are full of NaN where nothing was written.
TEST_F(DecodeAttentionOnGpu, OverPagesItIsThatOfF32Rounded) {
  std::vector<Case> cases = {
      {heads(1, 1, 64), {1}, 64},
      {heads(4, 1, 64), {1, 31, 32, 33, 64, 65}, 128},
      {heads(32, 8, 64), {1024}, 2048},
      {heads(8, 1, 128), {257, 5}, 300},
      {heads(6, 2, 128), {64, 127, 128, 129}, 200},
      {heads(7, 1, 64), {500}, 500},
      {heads(4, 1, 64), {8000}, 9000},     // more than one cluster for a head
      {heads(9, 1, 64), {40}, 64},         // more heads than the fast kernel takes
      {heads(4, 2, 40, 24), {33, 7}, 64},  // another width
      {heads(16, 8, 64), std::vector<int32_t>(70, 90), 128},
  };
  for (int i = 0; i < 6; ++i) {
    Case c = {heads(static_cast<int>(4 * random_.integer(1, 2)), 2, 64 * random_.integer(1, 2)), {}, 700};
    for (int64_t b = random_.integer(1, 20); b > 0; --b) {
      c.lengths.push_back(static_cast<int32_t>(random_.integer(1, 700)));
    }
    cases.push_back(c);
  }
  for (const Case& c : cases) {
    const auto rows = static_cast<int64_t>(c.lengths.size());
    const int64_t pages = (c.capacity + 63) / 64;
    std::vector<int32_t> table(static_cast<size_t>(rows * pages));
    std::iota(table.begin(), table.end(), 0);
    std::ranges::shuffle(table, std::mt19937(static_cast<unsigned>(random_.integer(0, 1 << 30))));
    const auto filled = [&](int64_t columns) {
      const Tensor t = random_.tensor({rows * pages * 64, columns}, DType::f32);
      for (int64_t b = 0; b < rows; ++b) {
        for (int64_t i = c.lengths[static_cast<size_t>(b)]; i < pages * 64; ++i) {
          const int64_t row = table[static_cast<size_t>(b * pages + i / 64)] * int64_t{64} + i % 64;
          for (float& v : t.slice(row, row + 1).span<float>()) v = std::nanf("");
        }
      }
      return narrow(t);
    };
    std::vector<int32_t> sequences(c.lengths.size());
    std::iota(sequences.begin(), sequences.end(), 0);
    std::vector<int32_t> positions = c.lengths;
    for (int32_t& p : positions) --p;
    const KvPages there = {filled(c.config.kv_heads * c.config.head_dim),
                           filled(c.config.kv_heads * c.config.values()),
                           indices(table).view({rows, pages}).to(kGpu), 64};
    const Tensor q = draw({rows, c.config.heads * c.config.head_dim}, 2);
    const KvPlaces places = {indices(sequences), indices(positions)};
    const KvPages here = {on_host(there.k_SGd), on_host(there.v_SGd), there.table_BP.to(kCpu), 64};
    const Values want = values(attention_over_pages(on_host(q), places, here, c.config));
    const KvPlaces places_there = {places.sequences.to(kGpu), places.positions.to(kGpu)};
    const Tensor got = attention_over_pages(q, places_there, there, c.config);
    const std::string what = format("{} heads over {} of {} columns, {} rows, first of {}", c.config.heads,
                                    c.config.kv_heads, c.config.head_dim, rows, c.lengths[0]);
    expect_close(values(got), want, within(1, DType::bf16, 1e-2), what);
    EXPECT_TRUE(same_bits(got, attention_over_pages(q, places_there, there, c.config))) << what;
  }
}

// One launch for two, behind the products that it waits for: the same bits.
TEST_F(DecodeAttentionOnGpu, InBf16ItAppendsAndAttendsAtOnce) {
  struct Step {
    AttentionConfig config;
    int64_t rows;
    int64_t capacity;
    int64_t columns;  // that turn
  };
  for (const auto& [c, rows, capacity, columns] :
       {Step{heads(4, 1, 64), 1, 128, 64}, Step{heads(32, 8, 64), 3, 2048, 64},
        Step{heads(8, 1, 128), 20, 300, 128}, Step{heads(8, 8, 64), 2, 100, 0},
        Step{heads(6, 2, 64), 64, 640, 64}, Step{heads(4, 1, 64), 1, 9000, 64},
        Step{heads(16, 2, 128), 7, 1024, 128}, Step{heads(8, 2, 64), 5, 200, 32}}) {
    const int64_t pages = (capacity + 63) / 64;
    std::vector<int32_t> table(static_cast<size_t>(rows * pages));
    std::iota(table.begin(), table.end(), 0);
    std::ranges::shuffle(table, std::mt19937(static_cast<unsigned>(random_.integer(0, 1 << 30))));
    std::vector<int32_t> sequences(static_cast<size_t>(rows));
    std::iota(sequences.rbegin(), sequences.rend(), 0);
    std::vector<int32_t> positions;
    for (int64_t b = 0; b < rows; ++b) {
      positions.push_back(static_cast<int32_t>(b == 1 ? 0 : random_.integer(0, capacity - 1)));
    }
    const int64_t width = c.kv_heads * c.head_dim;
    const KvPages one = {draw({rows * pages * 64, width}), draw({rows * pages * 64, width}),
                         indices(table).view({rows, pages}).to(kGpu), 64};
    const KvPages two = {copied(one.k_SGd), copied(one.v_SGd), one.table_BP, 64};
    const KvPlaces places = {indices(sequences).to(kGpu), indices(positions).to(kGpu)};
    const Rotation by = columns > 0 ? rotation(500000, columns) : Rotation();
    const Tensor x = draw({rows, 128});
    const Tensor w_q = draw({c.heads * c.head_dim, 128}, 0.2);
    const Tensor w_k = draw({width, 128}, 0.1);
    const auto fresh_rows = [&] {
      return AttentionRows{matmul_nt(x, w_q), matmul_nt(x, w_k), matmul_nt(x, w_k),
                           columns > 0 ? &by : nullptr};
    };
    current_stream().synchronise();
    const auto at_once = [&] {
      const AtRest at_rest;
      return append_and_attend(one, places, fresh_rows(), c);
    };
    const Tensor y = at_once();
    const AttentionRows apart = fresh_rows();
    turn_and_append(two, places, apart, c.head_dim);
    const std::string what =
        format("{} heads over {} of {} columns, {} rows", c.heads, c.kv_heads, c.head_dim, rows);
    EXPECT_TRUE(same_bits(y, attention_over_pages(apart.q_THd, places, two, c))) << what;
    EXPECT_TRUE(same_bits(one.k_SGd, two.k_SGd)) << what;
    EXPECT_TRUE(same_bits(one.v_SGd, two.v_SGd)) << what;
    EXPECT_TRUE(same_bits(append_and_attend(one, places, fresh_rows(), c), y)) << what;
  }
}

TEST_F(DecodeAttentionOnGpu, InBf16ItRefusesPlacesWithoutAPage) {
  const AttentionConfig c = heads(4, 1, 64);
  const KvPages pages = {draw({128, 64}), draw({128, 64}), indices({1, -1}).view({1, 2}).to(kGpu), 64};
  const auto refuses = [&](int32_t sequence, int32_t position) {
    const KvPlaces places = {indices({sequence}).to(kGpu), indices({position}).to(kGpu)};
    (void)attention_over_pages(draw({1, 256}), places, pages, c);
    EXPECT_THROW(current_stream().synchronise(), BrokenPromise) << sequence << ", " << position;
    const Tensor row = draw({1, 64});
    (void)append_and_attend(pages, places, {draw({1, 256}), row, row}, c);
    EXPECT_THROW(current_stream().synchronise(), BrokenPromise) << sequence << ", " << position;
    current_stream().synchronise();
  };
  refuses(0, 64);
  refuses(0, 128);
  refuses(1, 0);
  refuses(-1, 0);
  refuses(0, -1);
}

TEST_F(DecodeAttentionOnGpu, RowsAreAppendedInBf16) {
  for (const int64_t columns : {1, 8, 24, 512}) {
    const KvPages pages = {zeros({12, columns}, DType::bf16), zeros({12, 2 * columns}, DType::bf16),
                           indices({1, 2, 0, 3}).view({2, 2}).to(kGpu), 3};
    const Tensor k = draw({2, columns});
    const Tensor v = draw({2, 2 * columns});
    append_to_pages(pages, {indices({1, 0}).to(kGpu), indices({5, 1}).to(kGpu)}, k, v);
    const auto expect_row = [&](const Tensor& all, int64_t row, const Tensor& from, int64_t of) {
      EXPECT_TRUE(same_bits(all.slice(row, row + 1), from.slice(of, of + 1))) << row << ", " << columns;
    };
    expect_row(pages.k_SGd, 11, k, 0);  // page 3, its row 2
    expect_row(pages.v_SGd, 11, v, 0);
    expect_row(pages.k_SGd, 4, k, 1);  // page 1, its row 1
    expect_row(pages.v_SGd, 4, v, 1);
    for (const int64_t row : {0, 3, 5, 10}) {
      expect_row(pages.k_SGd, row, zeros({1, columns}, DType::bf16), 0);
    }
  }
}

}  // namespace
}  // namespace phalanx::test
