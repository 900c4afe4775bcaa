// Which choices experts have room for, whatever order the rows stand in.
#include <algorithm>
#include <array>
#include <map>
#include <numeric>

#include "phalanx/ops/route.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

std::vector<int64_t> from(int64_t first, int64_t count) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

// The first ⌈factor · n · K / E⌉ of each sequence and expert; rows in order.
std::vector<int64_t> reference(const std::vector<int64_t>& idx, size_t k, const std::vector<int64_t>& offsets,
                               double experts, double factor) {
  std::vector<int64_t> kept = idx;
  for (size_t b = 0; b + 1 < offsets.size(); ++b) {
    const auto n = static_cast<double>(offsets[b + 1] - offsets[b]);
    const double room = std::ceil(factor * (n * static_cast<double>(k) / experts));
    std::map<int64_t, double> before;
    for (size_t i = static_cast<size_t>(offsets[b]) * k; i < static_cast<size_t>(offsets[b + 1]) * k; ++i) {
      if (before[idx[i]]++ >= room) kept[i] = -1;
    }
  }
  return kept;
}

TEST_P(Capacity, KeepsTheFirstByPositionInAnyOrderOfRows) {
  Random random;
  SCOPED_TRACE(random.trace());
  const std::vector<int64_t> offsets = {0, 9, 9, 10, 33};
  for (const int64_t experts : {3, 5, 16}) {
    constexpr int64_t kTopK = 2;
    const Tensor choices =
        route(here(random.tensor({33, experts}, DType::f64)), {.top_k = kTopK}).topk_idx_TK;
    const std::vector<int64_t> idx = list(choices);
    for (const double factor : {0.3, 1.0, 1.25, 100.0}) {
      const std::vector<int64_t> want = reference(idx, kTopK, offsets, static_cast<double>(experts), factor);
      if (factor == 100) {
        EXPECT_EQ(want, idx);
      }
      std::vector<int64_t> order = from(0, 33);  // the token behind each row
      for (int shuffles = 0; shuffles < 4; ++shuffles) {
        std::vector<int64_t> moved;
        std::vector<int64_t> want_moved;
        std::vector<int64_t> numbers;
        for (const int64_t token : order) {
          numbers.push_back(1000 + token);
          for (size_t i = 0; i < kTopK; ++i) {
            moved.push_back(idx[static_cast<size_t>(token) * kTopK + i]);
            want_moved.push_back(want[static_cast<size_t>(token) * kTopK + i]);
          }
        }
        const Tensor kept =
            within_capacity(here(indices64({33, kTopK}, moved)), here(indices64({33}, numbers)),
                            indices64({5}, offsets), {experts, factor});
        EXPECT_EQ(list(kept), want_moved) << experts << " experts, factor " << factor;
        for (size_t i = order.size(); i-- > 1;) {
          std::swap(order[i], order[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i)))]);
        }
      }
    }
  }
}

TEST_P(Capacity, AllTokensToOneExpertAndNoneToTheOthers) {
  const Tensor kept =
      within_capacity(here(indices64({6, 1}, {2, 2, 2, 2, 2, 2})), here(indices64({6}, from(4, 6))),
                      indices64({2}, {0, 6}), {4, 1});  // ⌈6 / 4⌉ = 2
  EXPECT_EQ(list(kept), (std::vector<int64_t>{2, 2, -1, -1, -1, -1}));
}

// A tie of scores goes to the lower expert in every row, so all of them want the same ones.
TEST_P(Capacity, TiesFillTheLowerExpertsFirst) {
  const Routing routing = route(here(Tensor::zeros({4, 3}, DType::f32)), {.top_k = 2});
  const Tensor kept = within_capacity(routing.topk_idx_TK, here(indices64({4}, from(0, 4))),
                                      indices64({2}, {0, 4}), {3, 0.5});
  EXPECT_EQ(list(kept), (std::vector<int64_t>{0, 1, 0, 1, -1, -1, -1, -1}));
}

// Slice by slice, each with what those before it took, as all at once.
TEST_P(Capacity, SlicesTakeWhatTheirPredecessorsLeft) {
  Random random;
  SCOPED_TRACE(random.trace());
  constexpr int64_t kExperts = 3;
  const std::vector<int64_t> offsets = {0, 11, 24};
  const std::vector<int64_t> choices =
      list(route(here(random.tensor({24, kExperts}, DType::f64)), {.top_k = 2}).topk_idx_TK);
  const std::vector<int64_t> want = reference(choices, 2, offsets, kExperts, 0.8);
  const Tensor taken_BE = here(Tensor::zeros({2, kExperts}, DType::i64));
  std::vector<int64_t> got(want.size());
  std::array<int64_t, 2> begin = {0, 11};
  for (const std::array<int64_t, 2> end : {std::array<int64_t, 2>{0, 11}, {5, 11}, {5, 20}, {11, 24}}) {
    std::vector<int64_t> tokens = from(begin[0], end[0] - begin[0]);
    const int64_t of_first = std::ssize(tokens);
    for (const int64_t t : from(begin[1], end[1] - begin[1])) tokens.push_back(t);
    std::ranges::reverse(tokens);
    std::vector<int64_t> idx;
    for (const int64_t t : tokens) {
      for (int64_t k = 0; k < 2; ++k) idx.push_back(choices[static_cast<size_t>(2 * t + k)]);
    }
    const int64_t n = std::ssize(tokens);
    const std::vector<int64_t> kept = list(within_capacity(
        here(indices64({n, 2}, idx)), here(indices64({n}, tokens)), indices64({3}, {0, of_first, n}),
        {.experts = kExperts,
         .factor = 0.8,
         .whole_offsets = indices64({3}, offsets),
         .taken_BE = taken_BE}));
    for (size_t i = 0; i < kept.size(); ++i) got[static_cast<size_t>(tokens[i / 2]) * 2 + i % 2] = kept[i];
    begin = end;
  }
  EXPECT_EQ(got, want);
}

TEST_P(Capacity, RefusesTwoTokensOfOneNumber) {
  expect_refused([] {
    (void)within_capacity(here(indices64({2, 1}, {0, 0})), here(indices64({2}, {3, 3})),
                          indices64({2}, {0, 2}), {2, 1});
  });
}

}  // namespace
}  // namespace phalanx::test
