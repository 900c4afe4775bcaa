// Decoding's attention where only GPUs have it: bf16, cut over the context; and over segments there.
#include <algorithm>
#include <numeric>

#include "phalanx/ops/decode_attention.h"
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

TEST_F(DecodeAttentionOnGpu, InBf16ItRefusesPlacesWithoutAPage) {
  const AttentionConfig c = heads(4, 1, 64);
  const KvPages pages = {draw({128, 64}), draw({128, 64}), indices({1, -1}).view({1, 2}).to(kGpu), 64};
  const auto refuses = [&](int32_t sequence, int32_t position) {
    const KvPlaces places = {indices({sequence}).to(kGpu), indices({position}).to(kGpu)};
    (void)attention_over_pages(draw({1, 256}), places, pages, c);
    EXPECT_THROW(current_stream().synchronise(), BrokenPromise) << sequence << ", " << position;
    current_stream().synchronise();
  };
  refuses(0, 64);
  refuses(0, 128);
  refuses(1, 0);
  refuses(-1, 0);
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
