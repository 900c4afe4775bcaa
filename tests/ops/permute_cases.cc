#include "phalanx/ops/permute.h"

#include <algorithm>

#include "phalanx/ops/keep_experts.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

// Rows whose slots name distinct experts; `none` is the share of slots that name none.
Rows random_slots(Random& random, const Shape& shape, int64_t live, int experts, double none) {
  std::vector<int64_t> idx;
  for (int64_t r = 0; r < shape[0]; ++r) {
    std::vector<int64_t> order(static_cast<size_t>(experts));
    for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int64_t>(e);
    for (size_t e = order.size(); e-- > 1;) {
      std::swap(order[e], order[static_cast<size_t>(random.integer(0, static_cast<int64_t>(e)))]);
    }
    for (size_t k = 0; k < static_cast<size_t>(shape[1]); ++k) {
      idx.push_back(random.uniform(0, 1) < none ? -1 : order[k]);
    }
  }
  return {indices64(shape, idx), indices64({1}, {live})};
}

Rows first_rows(const Tensor& data, const Rows& like) { return {data, like.live}; }

// The definition: sort the live slots that name an expert by expert, then row, then slot.
void expect_order(const Rows& topk, int experts) {
  const ExpertOrder order = order_by_expert(here(topk), experts);
  const int64_t k = topk.data.dim(1);
  const std::vector<int64_t> idx = list(topk.data);
  std::vector<int64_t> slots;
  for (int64_t s = 0; s < topk.count() * k; ++s) {
    if (idx[static_cast<size_t>(s)] >= 0) slots.push_back(s);
  }
  const auto expert = [&](int64_t slot) { return idx[static_cast<size_t>(slot)]; };
  std::ranges::stable_sort(slots, {}, expert);
  const auto held = static_cast<int64_t>(slots.size());
  EXPECT_EQ(list(order.live), std::vector<int64_t>{held});
  EXPECT_EQ(list(order.slots.slice(0, held)), slots);
  std::vector<int64_t> offsets = {0};
  for (int e = 0; e < experts; ++e) offsets.push_back(offsets.back() + std::ranges::count(slots, e, expert));
  EXPECT_EQ(list(order.offsets), offsets);
  std::vector<int64_t> places(static_cast<size_t>(topk.count() * k), -1);
  for (size_t i = 0; i < slots.size(); ++i) places[static_cast<size_t>(slots[i])] = static_cast<int64_t>(i);
  EXPECT_EQ(list(order.places.slice(0, topk.count())), places);
}

struct Case {
  Shape shape;
  int64_t live;
  int experts;
  double none;
};

std::vector<Case> cases() {
  return {{{0, 2}, 0, 3, 0},   {{1, 1}, 1, 1, 0},        {{7, 2}, 7, 5, 0.3},
          {{9, 3}, 4, 8, 0.5}, {{5, 2}, 5, 4, 1},        {{5, 1}, 5, 1, 0},
          {{6, 1}, 6, 40, 0},  {{300, 4}, 289, 16, 0.1}, {{23, 11}, 20, 64, 0.2}};
}

TEST_P(Permute, OrdersByExpertRowAndSlot) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : cases())
    expect_order(random_slots(random, c.shape, c.live, c.experts, c.none), c.experts);
  // One expert gets all, the others none.
  expect_order(all_rows(indices64({4, 1}, {2, 2, 2, 2})), 5);
}

// Several times what one block of a kernel sorts; slots of a row may even name one expert twice.
TEST_P(Permute, OrdersManyRows) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const auto& [rows, k, experts] :
       {std::array<int64_t, 3>{5000, 8, 256}, {3000, 32, 1000}, {70'001, 2, 3}, {4097, 1, 2500}}) {
    SCOPED_TRACE(format("{} rows, {} slots each, {} experts", rows, k, experts));
    std::vector<int64_t> idx(static_cast<size_t>(rows * k));
    for (int64_t& e : idx) e = random.integer(0, 9) == 0 ? -1 : random.integer(0, experts - 1);
    const int64_t live = random.integer(rows / 2, rows);
    expect_order({indices64({rows, k}, idx), indices64({1}, {live})}, static_cast<int>(experts));
    expect_order(all_rows(indices64({rows, k}, std::vector<int64_t>(idx.size(), experts - 1))),
                 static_cast<int>(experts));
  }
}

// Rows behind the live count name experts that are not there, and are left alone.
TEST_P(Permute, LooksAtLiveRowsOnly) {
  const Rows topk = {indices64({4, 2}, {1, 0, -1, 1, 77, 78, 79, 80}), indices64({1}, {2})};
  const ExpertOrder order = order_by_expert(here(topk), 2);
  EXPECT_EQ(list(order.offsets), (std::vector<int64_t>{0, 1, 3}));
  EXPECT_EQ(list(order.live), (std::vector<int64_t>{3}));
  const Tensor x = tensor({4, 1}, DType::f32, {1, 2, 3, 4});
  EXPECT_EQ(values(permute(here(first_rows(x, topk)), order)), (Values{1, 1, 2}));
}

TEST_P(Permute, RefusesExpertsThatAreNotThere) {
  for (const int64_t wrong : {3, -2}) {
    expect_refused([&] { (void)order_by_expert(here(all_rows(indices64({2, 1}, {0, wrong}))), 3); });
  }
}

void expect_as_reference(Random& random, const Case& c, int64_t width, DType dtype) {
  SCOPED_TRACE(format("{} slots, {} live rows, {} wide, {}", c.shape, c.live, width, dtype_name(dtype)));
  const Rows topk = random_slots(random, c.shape, c.live, c.experts, c.none);
  const ExpertOrder order = order_by_expert(here(topk), c.experts);
  const std::vector<int64_t> slots = list(order.slots);
  const Rows x = first_rows(random.tensor({c.shape[0], width}, dtype), topk);
  const Tensor weights = random.tensor(c.shape, dtype);
  const Values xv = values(x.data);
  const Values wv = values(weights);
  const auto d = static_cast<size_t>(width);
  const auto k = static_cast<size_t>(c.shape[1]);

  const Rows rows = permute(here(x), order);
  const int64_t held = list(rows.live)[0];
  Values permuted;
  Values y(static_cast<size_t>(topk.count()) * d);
  Values plain(y.size());
  for (int64_t i = 0; i < held; ++i) {
    const auto slot = static_cast<size_t>(slots[static_cast<size_t>(i)]);
    for (size_t j = 0; j < d; ++j) {
      const size_t at = slot / k * d + j;
      permuted.push_back(xv[at]);
      y[at] += wv[slot] * xv[at];
      plain[at] += xv[at];
    }
  }
  EXPECT_EQ(values(rows), permuted);
  for_each_target_here([&](bool) {
    expect_close(values(unpermute(rows, order, here(weights), here(topk))), y,
                 within(8, dtype, 1 + largest(y)), "y");
    expect_close(values(unpermute(rows, order, Tensor(), here(topk))), plain,
                 within(8, dtype, 1 + largest(plain)), "plain");
  });
}

TEST_P(Permute, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Case& c : cases()) {
      for (const int64_t width : {1, 33, 128}) expect_as_reference(random, c, width, dtype);
    }
  }
}

TEST_P(Permute, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Rows topk = random_slots(random, {400, 3}, 400, 9, 0.1);
  const ExpertOrder order = order_by_expert(here(topk), 9);
  const Rows x = here(first_rows(random.tensor({400, 67}, DType::f32), topk));
  const Tensor weights = here(random.tensor({400, 3}, DType::f32));
  const int64_t held = list(order.live)[0];
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Rows rows = permute(x, order);
    return {rows.data.slice(0, held), unpermute(rows, order, weights, here(topk)).data};
  });
}

TEST_P(Permute, KeepsTheChoicesOfSomeExperts) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const Case& c : cases()) {
    const Rows topk = random_slots(random, c.shape, c.live, c.experts, c.none);
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, c.experts}, {0, 1}, {2, 3}, {5, 0}}) {
      std::vector<int64_t> want = list(topk.data);
      for (int64_t& e : want) e = e >= first && e < first + count ? e - first : -1;
      const Tensor kept = here(indices64(c.shape, list(topk.data)));
      keep_experts(kept, first, count);
      EXPECT_EQ(list(kept), want) << first << " " << count;
    }
  }
}

}  // namespace
}  // namespace phalanx::test
