// Layouts against a naive count, and the kernels that follow them against sums of scalars, bit for bit.
#include "phalanx/ep/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <tuple>

namespace phalanx::ep {
namespace {

// T tokens, K top-k, D width

struct Sizes {
  int64_t tokens;
  int64_t top_k;
  int64_t local_experts;
  int ranks;
};

Sizes random_sizes(std::mt19937& random) {
  const auto up_to = [&](uint32_t n) { return static_cast<int64_t>(random() % n); };
  return {up_to(60), 1 + up_to(32), 1 + up_to(9), static_cast<int>(1 + up_to(16))};
}

Tensor random_choices(const Sizes& s, std::mt19937& random) {
  const Tensor idx = Tensor::empty({s.tokens, s.top_k}, DType::i64);
  const auto experts = static_cast<uint32_t>(s.local_experts * s.ranks);
  const uint32_t favoured = 1 + random() % experts;  // of skewed choices, those below it
  for (int64_t& e : idx.span<int64_t>()) {
    e = random() % 4 == 0 ? -1 : static_cast<int64_t>(random() % (random() % 2 == 0 ? favoured : experts));
  }
  return idx;
}

// The ranks that have an expert of a token.
std::set<int64_t> ranks_of(const Tensor& idx, int64_t token, int64_t local_experts) {
  std::set<int64_t> ranks;
  for (int64_t k = 0; k < idx.dim(1); ++k) {
    const int64_t e = idx.data<int64_t>()[token * idx.dim(1) + k];
    if (e >= 0) ranks.insert(e / local_experts);
  }
  return ranks;
}

TEST(Layout, IsTheNaiveCount) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 2000; ++i) {
    const Sizes s = random_sizes(random);
    const Tensor idx = random_choices(s, random);
    const Layout layout = layout_of(idx, ExpertMap::even(s.local_experts * s.ranks, s.ranks));
    ASSERT_EQ(layout.tokens(), s.tokens);
    std::vector<int64_t> rows(static_cast<size_t>(s.ranks), 0);
    int64_t pair = 0;
    for (int64_t t = 0; t < s.tokens; ++t) {
      ASSERT_EQ(layout.first_T.data<int64_t>()[t], pair);
      for (const int64_t r : ranks_of(idx, t, s.local_experts)) {
        ASSERT_EQ(layout.rank_P.data<int32_t>()[pair], r);
        ASSERT_EQ(layout.row_P.data<int64_t>()[pair], rows[static_cast<size_t>(r)]++);
        ++pair;
      }
    }
    ASSERT_EQ(layout.first_T.data<int64_t>()[s.tokens], pair);
    ASSERT_TRUE(std::ranges::equal(layout.rows, rows));
  }
}

TEST(Layout, BySlotPutsARankWhereItsLastSlotIs) {
  // Experts 0, 1 on rank 0; 2, 3 on rank 1; 4, 5 on rank 2.
  const std::vector<int64_t> chosen = {5, 0, 2, 1, -1, 4, 4, 3, -1, -1};
  const Tensor idx = Tensor::of(Shape{2, 5}, std::span<const int64_t>(chosen));
  const Layout layout = layout_of(idx, ExpertMap::even(6, 3), PairOrder::by_slot);
  const std::vector<int32_t> ranks(layout.rank_P.data<int32_t>(),
                                   layout.rank_P.data<int32_t>() + layout.pairs());
  EXPECT_EQ(ranks, (std::vector<int32_t>{2, 1, 0, 2, 1}));
}

TEST(DispatchLayout, IsTheNaiveCount) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 300; ++i) {
    const Sizes s = random_sizes(random);
    const Tensor idx = random_choices(s, random);
    const int64_t experts = s.local_experts * s.ranks;
    const DispatchLayout got = dispatch_layout(idx, ExpertMap::even(experts, s.ranks));
    for (int64_t r = 0; r < s.ranks; ++r) {
      int32_t tokens = 0;
      for (int64_t t = 0; t < s.tokens; ++t) {
        const bool goes = ranks_of(idx, t, s.local_experts).contains(r);
        tokens += goes;
        ASSERT_EQ(got.is_token_in_rank.data<uint8_t>()[t * s.ranks + r], goes ? 1 : 0);
      }
      ASSERT_EQ(got.tokens_per_rank.data<int32_t>()[r], tokens);
    }
    for (int64_t e = 0; e < experts; ++e) {
      ASSERT_EQ(got.tokens_per_expert.data<int32_t>()[e], std::ranges::count(idx.span<int64_t>(), e));
    }
  }
  EXPECT_THROW(dispatch_layout(Tensor::zeros({2, 2}, DType::i32), ExpertMap::even(4, 2)), Error);
  const std::vector<int64_t> chosen = {0, 4};
  const Tensor idx = Tensor::of(Shape{1, 2}, std::span<const int64_t>(chosen));
  EXPECT_THROW(dispatch_layout(idx, ExpertMap::even(4, 2)), Error);
}

/// dtype, width: some of whole vectors, some not; the last rows are long enough to be written past the
/// caches.
class RowsTest : public ::testing::TestWithParam<std::tuple<DType, int64_t, int64_t>> {
 protected:
  RowsTest() {
    std::random_device device;
    seed_ = device();
    random_.seed(seed_);
    const auto [dtype, width, tokens] = GetParam();
    sizes_ = {tokens, 3, 2, 4};
    layout_ = layout_of(random_choices(sizes_, random_), ExpertMap::even(8, 4));
    x_TD_ = Tensor::empty({tokens, width}, dtype);
    for (size_t i = 0; i < x_TD_.bytes(); ++i) x_TD_.raw()[i] = static_cast<std::byte>(random_());
    for (const int64_t rows : layout_.rows) {
      spread_.push_back(Tensor::empty({rows, width}, dtype));
      to_.push_back(spread_.back().raw());
    }
    spread_rows(layout_, x_TD_, to_);
  }

  size_t row_bytes() const { return static_cast<size_t>(x_TD_.dim(1)) * dtype_size(x_TD_.dtype()); }

  // f(pair, its row on its rank) for the pairs of a token.
  template <class F>
  void for_pairs(int64_t token, F f) const {
    const int64_t* const first = layout_.first_T.data<int64_t>();
    for (int64_t p = first[token]; p < first[token + 1]; ++p) {
      const auto rank = static_cast<size_t>(layout_.rank_P.data<int32_t>()[p]);
      f(p, spread_[rank].raw() + static_cast<size_t>(layout_.row_P.data<int64_t>()[p]) * row_bytes());
    }
  }

  unsigned seed_ = 0;
  std::mt19937 random_;
  Sizes sizes_{};
  Layout layout_;
  Tensor x_TD_;
  std::vector<Tensor> spread_;  // by rank
  std::vector<std::byte*> to_;
};

TEST_P(RowsTest, EachPairGetsTheTokensRow) {
  SCOPED_TRACE(seed_);
  for (int64_t t = 0; t < sizes_.tokens; ++t) {
    for_pairs(t, [&](int64_t pair, const std::byte* row) {
      ASSERT_EQ(std::memcmp(row, x_TD_.raw() + static_cast<size_t>(t) * row_bytes(), row_bytes()), 0)
          << "pair " << pair;
    });
  }
}

template <class T>
float widened(T value) {
  return value.to_float();
}
double widened(double value) { return value; }
float widened(float value) { return value; }

template <class T, class Wide>
T narrowed(Wide value) {
  if constexpr (std::is_same_v<T, Wide>) {
    return value;
  } else {
    return T::from(value);
  }
}

// Any bits may be summed: denormals, infinities and NaNs too (any NaN is like another).
template <class T>
void expect_same(T got, T expected) {
  if (std::isnan(widened(got)) && std::isnan(widened(expected))) return;
  ASSERT_EQ(std::memcmp(&got, &expected, sizeof(T)), 0) << widened(got) << " " << widened(expected);
}

template <class T>
void add_noise(const Tensor& t, std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < t.numel(); ++i) {
    if (random() % 8 == 0) continue;  // the bits stay what they are
    auto* const at = reinterpret_cast<T*>(t.raw()) + i;
    *at = narrowed<T>(static_cast<decltype(widened(T{}))>(normal(random)));
  }
}

TEST_P(RowsTest, SumsAreThoseOfScalars) {
  SCOPED_TRACE(seed_);
  const auto check = [&](auto zero) {
    using T = decltype(zero);
    for (const Tensor& t : spread_) add_noise<T>(t, random_);
    const Tensor out_TD = Tensor::empty(x_TD_.shape(), x_TD_.dtype());
    sum_rows(layout_, to_, out_TD);
    for (int64_t t = 0; t < sizes_.tokens; ++t) {
      for (int64_t d = 0; d < x_TD_.dim(1); ++d) {
        decltype(widened(T{})) sum = 0;
        bool first = true;
        for_pairs(t, [&](int64_t, const std::byte* row) {
          const auto v = widened(reinterpret_cast<const T*>(row)[d]);
          sum = first ? v : sum + v;
          first = false;
        });
        expect_same(reinterpret_cast<const T*>(out_TD.raw())[t * x_TD_.dim(1) + d], narrowed<T>(sum));
      }
    }
  };
  switch (x_TD_.dtype()) {
    case DType::f64:
      return check(double{});
    case DType::f32:
      return check(float{});
    case DType::bf16:
      return check(bf16{});
    default:
      return check(f16{});
  }
}

INSTANTIATE_TEST_SUITE_P(
    Rows, RowsTest,
    ::testing::Combine(::testing::Values(DType::f64, DType::f32, DType::bf16, DType::f16),
                       ::testing::Values<int64_t>(1, 31, 64, 200), ::testing::Values<int64_t>(0, 1, 57)));
INSTANTIATE_TEST_SUITE_P(PastTheCaches, RowsTest,
                         ::testing::Combine(::testing::Values(DType::f32, DType::bf16),
                                            ::testing::Values<int64_t>(4096),
                                            ::testing::Values<int64_t>(700)));

}  // namespace
}  // namespace phalanx::ep
