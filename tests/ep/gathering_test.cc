// Gathering all ranks' rows gives what dispatch and combine give, to the bit.
#include "phalanx/ep/gathering.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ep/buffer.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/permute.h"

namespace phalanx::ep {
namespace {

constexpr int64_t kWidth = 7;

struct Case {
  int ep;
  int etp;
  int experts;
  int64_t tokens;
  int64_t top_k;
};

// One rank's rows; some slots name no expert.
Tokens random_tokens(const Case& c, DType dtype, unsigned seed) {
  std::mt19937 random(seed);
  const auto fill = [&](const Tensor& t) {
    visit_float(t.dtype(), [&](auto e) {
      std::normal_distribution<double> normal;
      for (auto& v : t.span<decltype(e)>()) v = static_cast<decltype(e)>(normal(random));
    });
    return t;
  };
  Tokens out = {fill(Tensor::empty({c.tokens, kWidth}, dtype)),
                Tensor::empty({c.tokens, c.top_k}, DType::i64),
                fill(Tensor::empty({c.tokens, c.top_k}, dtype))};
  std::vector<int64_t> experts(static_cast<size_t>(c.experts));
  for (size_t e = 0; e < experts.size(); ++e) experts[e] = static_cast<int64_t>(e);
  const auto idx = out.topk_idx_TK.span<int64_t>();
  for (size_t i = 0; i < idx.size(); ++i) {
    const size_t k = i % static_cast<size_t>(c.top_k);
    if (k == 0) std::ranges::shuffle(experts, random);
    idx[i] = random() % 5 == 0 ? -1 : experts[k];
  }
  return out;
}

// What this rank's experts make of the rows: each another multiple, of which a rank of etp has a part.
Rows by_experts(const Rows& x, const ExpertOrder& order, int64_t first, int part) {
  const auto offsets = order.offsets.span<const int64_t>();
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const double factor = 1.5 + static_cast<double>(first) + static_cast<double>(e) + 0.3 * part;
    scale_into(x.data.slice(offsets[e], offsets[e + 1]), factor);
  }
  return x;
}

struct Groups {
  Group ep;
  Group etp;
};

// Ranks of ep stand together.
Groups groups_of(Group& world, const Case& c) {
  std::vector<int> ep;
  std::vector<int> etp;
  for (int r = 0; r < c.ep; ++r) ep.push_back(world.rank() / c.ep * c.ep + r);
  for (int r = 0; r < c.etp; ++r) etp.push_back(r * c.ep + world.rank() % c.ep);
  return {world.subgroup("ep", ep), world.subgroup("etp", etp)};
}

Tensor by_buffer(const Case& c, const Tokens& tokens, Groups& groups) {
  Buffer buffer(groups.ep, c.experts, {.etp = &groups.etp});
  const Dispatched in = run(buffer.dispatch(tokens.x_TD, tokens.topk_idx_TK, tokens.weights_TK));
  const ExpertOrder order = order_by_expert(in.topk_idx_RK, buffer.local_experts());
  const int64_t first = buffer.experts().first(groups.ep.rank());
  const Rows y = by_experts(permute(in.x_RD, order), order, first, groups.etp.rank());
  const Rows y_RD = unpermute(y, order, in.weights_RK, in.x_RD);
  return run(buffer.combine(y_RD, in.handle, Tensor())).x_TD;
}

Tensor by_gathering(const Case& c, const Tokens& tokens, Groups& groups) {
  Gathering gathering(groups.ep, groups.etp, c.experts);
  const Gathered in = run(gathering.dispatch(tokens.x_TD, tokens.topk_idx_TK, tokens.weights_TK));
  EXPECT_EQ(in.x_RD.count(), c.tokens * c.ep * c.etp);
  const ExpertOrder order = order_by_expert(in.topk_idx_RK, gathering.local_experts());
  const int64_t first = int64_t{gathering.local_experts()} * groups.ep.rank();
  const Rows y = by_experts(permute(in.x_RD, order), order, first, groups.etp.rank());
  return run(gathering.sum(unpermute(y, order, in.weights_RK, in.x_RD).data));
}

// Zeros of both signs are alike: a rank without the token's experts adds one.
bool same(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  return visit_float(a.dtype(), [&](auto e) {
    using T = decltype(e);
    return std::ranges::equal(a.span<const T>(), b.span<const T>());
  });
}

class GatheringTest : public ::testing::TestWithParam<Case> {};

TEST_P(GatheringTest, GivesWhatDispatchAndCombineGive) {
  const Case& c = GetParam();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const DType dtype : {DType::f32, DType::f64}) {
    run_thread_ranks({.ranks = c.ep * c.etp}, [&](Group& world) {
      Groups groups = groups_of(world, c);
      const Tokens tokens = random_tokens(c, dtype, seed + static_cast<unsigned>(world.rank()));
      const Tensor want = by_buffer(c, tokens, groups);
      EXPECT_TRUE(same(by_gathering(c, tokens, groups), want)) << dtype_name(dtype);
    });
  }
}

TEST_P(GatheringTest, LeavesTheChoicesAndSendsWhatTheFormulaSays) {
  const Case& c = GetParam();
  run_thread_ranks({.ranks = c.ep * c.etp}, [&](Group& world) {
    Groups groups = groups_of(world, c);
    const Tokens tokens = random_tokens(c, DType::f32, 1);
    const Tokens before = random_tokens(c, DType::f32, 1);
    Gathering gathering(groups.ep, groups.etp, c.experts);
    const auto sent = [&] { return groups.ep.traffic().sent + groups.etp.traffic().sent; };
    const int64_t other_rows = (c.ep * c.etp - 1) * c.tokens;
    const Gathered in = run(gathering.dispatch(tokens.x_TD, tokens.topk_idx_TK, tokens.weights_TK));
    EXPECT_EQ(sent(), other_rows * (kWidth * 4 + c.top_k * (8 + 4)));
    EXPECT_TRUE(std::ranges::equal(tokens.topk_idx_TK.span<int64_t>(), before.topk_idx_TK.span<int64_t>()));
    const int64_t dispatched = sent();
    EXPECT_EQ(run(gathering.sum(in.x_RD.data)).shape(), tokens.x_TD.shape());
    EXPECT_EQ(sent() - dispatched, other_rows * kWidth * 4);
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, GatheringTest,
                         ::testing::Values(Case{1, 1, 3, 9, 2}, Case{2, 1, 6, 13, 3}, Case{3, 1, 3, 5, 1},
                                           Case{4, 1, 8, 31, 4}, Case{1, 2, 4, 10, 2}, Case{2, 2, 4, 17, 2},
                                           Case{2, 3, 10, 6, 5}, Case{4, 1, 4, 0, 2}));

}  // namespace
}  // namespace phalanx::ep
