// What lies ahead of each row: of its own document alone, and the same wherever ranks of cp have the row.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "phalanx/model/layer.h"
#include "phalanx/ops/cross_entropy.h"

namespace phalanx {
namespace {

constexpr int kDepths = 3;
constexpr int64_t kRows = 24;

// Documents of 0 to 6 tokens. Token and target of a row tell its number.
Batch documents(std::mt19937& random) {
  std::vector<int64_t> offsets = {0};
  while (offsets.back() < kRows) {
    offsets.push_back(std::min<int64_t>(kRows, offsets.back() + static_cast<int64_t>(random() % 7)));
  }
  Batch b = {Tensor::empty({kRows}, DType::i32), Tensor::empty({kRows}, DType::i32),
             Tensor::zeros({kRows}, DType::i32),
             Tensor::of(Shape{std::ssize(offsets)}, std::span<const int64_t>(offsets)),
             Tensor::empty({kRows}, DType::i64)};
  for (int64_t i = 0; i < kRows; ++i) {
    b.tokens.data<int32_t>()[i] = static_cast<int32_t>(100 + i);
    b.targets.data<int32_t>()[i] = random() % 5 == 0 ? kIgnore : static_cast<int32_t>(200 + i);
    b.rows.data<int64_t>()[i] = i;
  }
  return b;
}

void expect_ahead(const Batch& own, const Batch& all) {
  const auto offsets = all.sequence_offsets.span<const int64_t>();
  ASSERT_EQ(own.ahead.size(), static_cast<size_t>(kDepths));
  for (int64_t i = 0; i < own.rows.numel(); ++i) {
    const int64_t row = own.rows.data<const int64_t>()[i];
    const int64_t end = *std::ranges::upper_bound(offsets, row);
    for (int64_t k = 0; k < kDepths; ++k) {
      const int64_t at = row + k + 1;
      const Ahead& ahead = own.ahead[static_cast<size_t>(k)];
      const int32_t token = at < end ? all.tokens.data<const int32_t>()[at] : 0;
      const int32_t target = at < end ? all.targets.data<const int32_t>()[at] : kIgnore;
      EXPECT_EQ(ahead.tokens.data<const int32_t>()[i], token) << "row " << row << ", depth " << k;
      EXPECT_EQ(ahead.targets.data<const int32_t>()[i], target) << "row " << row << ", depth " << k;
    }
  }
}

TEST(Ahead, IsOfTheOwnDocumentInEveryShareOfCp) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    const Batch all = documents(random);
    for (const auto& [cp, ulysses] : {std::pair{1, 1}, {2, 1}, {2, 2}, {4, 2}, {8, 1}}) {
      int64_t rows = 0;
      for (int rank = 0; rank < cp; ++rank) {
        const Batch own = own_tokens(with_ahead(all, kDepths), {.cp = cp, .rank = rank, .ulysses = ulysses});
        rows += own.rows.numel();
        expect_ahead(own, all);
      }
      EXPECT_EQ(rows, kRows);
    }
  }
}

}  // namespace
}  // namespace phalanx
