// Attention over pages against that over one segment of each sequence.
#include "phalanx/ops/decode_attention.h"

#include <algorithm>
#include <numeric>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

AttentionConfig heads(int heads, int kv_heads, int64_t head_dim, int64_t value_dim = 0) {
  return {heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)), value_dim};
}

// Rows of some sequences, on the CPU, in one list for all.
struct Texts {
  std::vector<int32_t> sequences;
  std::vector<int32_t> positions;
  Tensor k;
  Tensor v;
  std::vector<Tensor> k_of;  // by sequence
  std::vector<Tensor> v_of;

  Texts(const std::vector<int64_t>& lengths, const AttentionConfig& c, DType dtype, Random& random) {
    const auto all = std::reduce(lengths.begin(), lengths.end());
    k = random.tensor({all, c.kv_heads * c.head_dim}, dtype);
    v = random.tensor({all, c.kv_heads * c.values()}, dtype);
    int64_t begin = 0;
    for (size_t b = 0; b < lengths.size(); ++b) {
      for (int64_t i = 0; i < lengths[b]; ++i) {
        sequences.push_back(static_cast<int32_t>(b));
        positions.push_back(static_cast<int32_t>(i));
      }
      k_of.push_back(k.slice(begin, begin + lengths[b]));
      v_of.push_back(v.slice(begin, begin + lengths[b]));
      begin += lengths[b];
    }
  }
};

KvPlaces places_of(const std::vector<int32_t>& sequences, const std::vector<int32_t>& positions) {
  return {here(indices(sequences)), here(indices(positions))};
}

// Pages in any order, for sequences of so many rows at most; what they hold is not zero.
KvPages pages_for(int64_t sequences, int64_t rows, int64_t page_rows, const Texts& like, Random& random) {
  const int64_t of_sequence = (rows + page_rows - 1) / page_rows;
  std::vector<int32_t> order(static_cast<size_t>(sequences * of_sequence + 2));
  std::iota(order.begin(), order.end(), 0);
  std::ranges::shuffle(order, std::mt19937(static_cast<unsigned>(random.integer(0, 1 << 30))));
  const int64_t all = std::ssize(order) * page_rows;
  order.resize(order.size() - 2);
  return {here(random.tensor(like.k.shape().with_rows(all), like.k.dtype(), 3)),
          here(random.tensor(like.v.shape().with_rows(all), like.v.dtype(), 3)),
          here(indices(order).view({sequences, of_sequence})), page_rows};
}

TEST_P(DecodeAttention, EqualsThatOverOneSegmentOfEachSequence) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const AttentionConfig& c : {heads(1, 1, 1), heads(4, 2, 16), heads(6, 1, 13), heads(8, 2, 64),
                                   heads(4, 4, 24, 16), heads(2, 1, 3, 7)}) {
    for (const DType dtype : kFloats) {
      const std::vector<int64_t> lengths = {random.integer(1, 5), random.integer(60, 300), 64,
                                            random.integer(1, 200)};
      const Texts texts(lengths, c, dtype, random);
      const int64_t page_rows = std::array{1, 3, 16, 64}[static_cast<size_t>(random.integer(0, 3))];
      const KvPages pages = pages_for(4, std::ranges::max(lengths), page_rows, texts, random);
      const int64_t cut = random.integer(0, texts.k.rows());
      for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, texts.k.rows()}}) {
        const auto part = [&, b = begin, e = end](const std::vector<int32_t>& all) {
          return std::vector<int32_t>(all.begin() + b, all.begin() + e);
        };
        append_to_pages(pages, places_of(part(texts.sequences), part(texts.positions)),
                        here(texts.k.slice(begin, end)), here(texts.v.slice(begin, end)));
      }
      std::vector<int32_t> sequences;
      std::vector<int32_t> positions;
      for (int i = 0; i < 7; ++i) {
        sequences.push_back(static_cast<int32_t>(random.integer(0, 3)));
        const int64_t length = lengths[static_cast<size_t>(sequences.back())];
        positions.push_back(static_cast<int32_t>(i % 2 ? length - 1 : random.integer(0, length - 1)));
      }
      const Tensor q = random.tensor({7, c.heads * c.head_dim}, dtype, 2);
      const Tensor y = attention_over_pages(here(q), places_of(sequences, positions), pages, c);
      for (size_t i = 0; i < 7; ++i) {
        const auto row = static_cast<int64_t>(i);
        const auto b = static_cast<size_t>(sequences[i]);
        const std::vector<KvSegment> whole = {{texts.k_of[b], texts.v_of[b], 0}};
        const Values want =
            values(attention_over_segments(q.slice(row, row + 1), indices({positions[i]}), whole, c));
        expect_close(values(y.to(kCpu).slice(row, row + 1)), want,
                     within(dtype == DType::f64 ? 400 : 40, dtype, std::max(1.0, largest(want))),
                     format("row {} of {} columns, pages of {}", row, c.head_dim, page_rows));
      }
    }
  }
}

TEST_P(DecodeAttention, TurnsWhatItAppends) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const auto& [head_dim, columns] : {std::pair{64, 64}, {64, 16}, {10, 6}, {3, 2}}) {
    for (const DType dtype : kFloats) {
      const AttentionConfig c = heads(6, 2, head_dim, head_dim + 1);
      const Texts texts({70, 3}, c, dtype, random);
      const Rotation by = rotation(10000, columns);
      const KvPages one = pages_for(2, 70, 16, texts, random);
      const KvPages two = {copy_here(one.k_SGd.to(kCpu)), copy_here(one.v_SGd.to(kCpu)), one.table_BP, 16};
      const Tensor q = random.tensor({texts.k.rows(), 6 * head_dim}, dtype);
      const KvPlaces places = places_of(texts.sequences, texts.positions);
      const AttentionRows rows = {copy_here(q), copy_here(texts.k), here(texts.v), &by};
      turn_and_append(one, places, rows, head_dim);
      const AttentionRows apart = {copy_here(q), copy_here(texts.k), here(texts.v), &by};
      turn(apart, places.positions, head_dim);
      append_to_pages(two, places, apart.k_TGd, apart.v_TGd);
      const auto expect_equal = [&](const Tensor& got, const Tensor& want, const char* what) {
        expect_close(values(got), values(want), within(2, dtype, 1), format("{} of {}", what, columns));
      };
      expect_equal(rows.q_THd, apart.q_THd, "q");
      expect_equal(one.k_SGd, two.k_SGd, "k");
      expect_equal(one.v_SGd, two.v_SGd, "v");
      const AttentionRows still = {copy_here(q), copy_here(texts.k), here(texts.v)};
      turn_and_append(one, places, still, head_dim);
      EXPECT_TRUE(same_bits(still.q_THd.to(kCpu), q));
    }
  }
}

TEST_P(DecodeAttention, AppendsAndAttendsAtOnce) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const auto& [head_dim, columns] : {std::pair{64, 64}, {64, 16}, {10, 6}, {3, 0}}) {
    for (const DType dtype : kFloats) {
      const AttentionConfig c = heads(6, 2, head_dim, head_dim + 1);
      const std::vector<int64_t> lengths = {random.integer(1, 90), 1, 64, random.integer(60, 70)};
      const Texts texts(lengths, c, dtype, random);
      const Rotation by = columns > 0 ? rotation(10000, columns) : Rotation();
      const KvPages one = pages_for(4, 90, 16, texts, random);
      append_to_pages(one, places_of(texts.sequences, texts.positions), here(texts.k), here(texts.v));
      const KvPages two = {copy_here(one.k_SGd.to(kCpu)), copy_here(one.v_SGd.to(kCpu)), one.table_BP, 16};
      std::vector<int32_t> last;
      for (const int64_t n : lengths) last.push_back(static_cast<int32_t>(n) - 1);
      const KvPlaces places = places_of({2, 0, 3}, {last[2], last[0], last[3]});
      const auto drawn = [&](int64_t width) { return random.tensor({3, width}, dtype); };
      const Tensor q = drawn(6 * head_dim);
      const Tensor k = drawn(2 * head_dim);
      const Tensor v = drawn(2 * head_dim + 2);
      const Rotation* const rotates = columns > 0 ? &by : nullptr;
      const Tensor y = append_and_attend(one, places, {copy_here(q), copy_here(k), here(v), rotates}, c);
      const AttentionRows apart = {copy_here(q), copy_here(k), here(v), rotates};
      turn(apart, places.positions, head_dim);
      append_to_pages(two, places, apart.k_TGd, apart.v_TGd);
      const auto expect_equal = [&](const Tensor& got, const Tensor& want, const char* what) {
        expect_close(values(got), values(want), within(40, dtype, 1), format("{} of {}", what, columns));
      };
      expect_equal(y, attention_over_pages(apart.q_THd, places, two, c), "y");
      expect_equal(one.k_SGd, two.k_SGd, "k");
      EXPECT_TRUE(same_bits(one.v_SGd.to(kCpu), two.v_SGd.to(kCpu)));
    }
  }
}

TEST_P(DecodeAttention, RefusesPlacesWithoutAPage) {
  Random random;
  const AttentionConfig c = heads(2, 1, 4);
  const Texts texts({3, 3}, c, DType::f32, random);
  KvPages pages = pages_for(2, 6, 3, texts, random);
  const Tensor q = here(random.tensor({1, 8}, DType::f32));
  const Tensor k = here(texts.k.slice(0, 1));
  for (const auto& [sequence, position] : {std::pair{0, 6}, {1, -1}, {2, 0}, {-1, 0}}) {
    const KvPlaces places = places_of({sequence}, {position});
    expect_refused([&] { append_to_pages(pages, places, k, k); });
  }
  pages.table_BP = here(indices({0, -1, 1, 99}).view({2, 2}));
  for (const int32_t sequence : {0, 1}) {
    const KvPlaces places = places_of({sequence}, {4});
    expect_refused([&] { append_to_pages(pages, places, k, k); });
    expect_refused([&] { (void)attention_over_pages(q, places, pages, c); });
    expect_refused([&] { (void)append_and_attend(pages, places, {q, k, k}, c); });
  }
}

TEST_P(DecodeAttention, NoRows) {
  Random random;
  const AttentionConfig c = heads(2, 1, 4);
  const Texts texts({3}, c, DType::f32, random);
  const KvPages pages = pages_for(1, 3, 2, texts, random);
  const Tensor none = here(Tensor::empty({0, 4}, DType::f32));
  append_to_pages(pages, places_of({}, {}), none, none);
  const Tensor y = attention_over_pages(here(Tensor::empty({0, 8}, DType::f32)), places_of({}, {}), pages, c);
  EXPECT_EQ(y.shape(), Shape({0, 8}));
  const Tensor no_q = here(Tensor::empty({0, 8}, DType::f32));
  EXPECT_EQ(append_and_attend(pages, places_of({}, {}), {no_q, none, none}, c).shape(), Shape({0, 8}));
}

}  // namespace
}  // namespace phalanx::test
