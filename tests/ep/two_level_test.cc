// Nodes of several ranks: rows arrive as on one level, sums are those of a slow account of two, and every
// link carries the bytes of the header.
#include "phalanx/ep/two_level.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "phalanx/base/error.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/ep/buffer.h"

namespace phalanx::ep {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// T tokens of a rank, D width, K top-k

struct Nodes {
  int nodes;
  int of_node;
};

struct Sizes {
  std::vector<int64_t> experts;
  int64_t width;
  int64_t top_k;
};

Sizes random_sizes(int ranks, std::mt19937& random) {
  Sizes s = {{}, 1 + static_cast<int64_t>(random() % 40), 1 + static_cast<int64_t>(random() % 9)};
  for (int r = 0; r < ranks; ++r) s.experts.push_back(static_cast<int64_t>(random() % 4));
  s.experts[random() % s.experts.size()] += 1;
  return s;
}

Tokens random_tokens(const Sizes& s, unsigned seed) {
  std::mt19937 random(seed);
  const int64_t n = random() % 4 == 0 ? 0 : static_cast<int64_t>(random() % 25);
  Tokens t = {Tensor::empty({n, s.width}, DType::bf16), Tensor::empty({n, s.top_k}, DType::i64),
              Tensor::empty({n, s.top_k}, DType::f32)};
  const ExpertMap map{std::span<const int64_t>(s.experts)};
  std::normal_distribution<float> normal;
  for (bf16& v : t.x_TD.span<bf16>()) v = bf16::from(normal(random));
  for (float& v : t.weights_TK.span<float>()) v = normal(random);
  for (int64_t& e : t.topk_idx_TK.span<int64_t>()) {
    e = random() % 4 == 0 ? -1 : static_cast<int64_t>(random() % static_cast<uint64_t>(map.experts()));
  }
  return t;
}

// What a rank makes of its row, without having seen it.
bf16 made(int rank, int64_t row, int64_t column) {
  const auto mixed = static_cast<uint32_t>(rank * 7919 + row * 131 + column) * 2654435761u;
  return bf16::from(static_cast<float>(static_cast<int>(mixed >> 16 & 0xfff) - 2048) / 700);
}

Tensor all_made(int rank, int64_t rows, int64_t width) {
  Tensor y = Tensor::empty({rows, width}, DType::bf16);
  for (int64_t i = 0; i < y.numel(); ++i) y.data<bf16>()[i] = made(rank, i / width, i % width);
  return y;
}

// Sums inside nodes, rounded, then over nodes. `flat` is the route of the same dispatch on one level.
void expect_sums(const Tensor& got, const Route& flat, int of_node) {
  for (int64_t t = 0; t < flat.layout.tokens(); ++t) {
    const Pairs pairs(flat.layout, t);
    for (int64_t d = 0; d < got.dim(1); ++d) {
      std::map<int, float> of_node_sum;
      for (size_t p = 0; p < pairs.ranks.size(); ++p) {
        const int rank = pairs.ranks[p];
        const int64_t row = flat.starts[static_cast<size_t>(rank)] + pairs.rows[p];
        of_node_sum[rank / of_node] += made(rank, row, d).to_float();
      }
      float sum = 0;
      for (const auto& [node, part] : of_node_sum) sum += bf16::from(part).to_float();
      ASSERT_EQ(got.data<bf16>()[t * got.dim(1) + d].to_float(), bf16::from(sum).to_float()) << "token " << t;
    }
  }
}

class TwoLevelTest : public testing::TestWithParam<Nodes> {
 protected:
  int ranks() const { return GetParam().nodes * GetParam().of_node; }
  void on_ranks(const RankBody& body) const { run_thread_ranks({.ranks = ranks()}, body); }
  BufferOptions two_level() const { return {.way = Way::two_level, .ranks_of_node = GetParam().of_node}; }
};

TEST_P(TwoLevelTest, RowsAndSumsAreThoseOfASlowAccount) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 8; ++i) {
    const Sizes s = random_sizes(ranks(), random);
    const unsigned first = static_cast<unsigned>(random());
    on_ranks([&](Group& world) {
      const Tokens mine = random_tokens(s, first + static_cast<unsigned>(world.rank()));
      Buffer one(world, ExpertMap(s.experts));
      Buffer two(world, ExpertMap(s.experts), two_level());
      DispatchOptions options = {.expand = false};
      const Dispatched want = run(one.dispatch(mine, options));
      const Dispatched got = run(two.dispatch(mine, options));
      ASSERT_EQ(got.x_RD.count(), want.x_RD.count());
      ASSERT_EQ(std::memcmp(got.x_RD.data.raw(), want.x_RD.data.raw(), want.x_RD.live_bytes()), 0);
      ASSERT_TRUE(
          std::ranges::equal(got.topk_idx_RK.data.span<int64_t>(), want.topk_idx_RK.data.span<int64_t>()));
      ASSERT_TRUE(std::ranges::equal(got.weights_RK.span<float>(), want.weights_RK.span<float>()));
      const Rows again = run(two.dispatch(mine.x_TD, got.handle));
      ASSERT_EQ(std::memcmp(again.data.raw(), want.x_RD.data.raw(), want.x_RD.live_bytes()), 0);
      const Tensor y = all_made(world.rank(), got.x_RD.count(), s.width);
      const Combined sums = run(two.combine(all_rows(y), got.handle, got.weights_RK));
      ASSERT_NO_FATAL_FAILURE(expect_sums(sums.x_TD, want.handle.route, GetParam().of_node));
      for (int64_t j = 0; j < sums.weights_TK.numel(); ++j) {
        const bool none = mine.topk_idx_TK.data<int64_t>()[j] < 0;
        ASSERT_EQ(sums.weights_TK.data<float>()[j], none ? 0 : mine.weights_TK.data<float>()[j]);
      }
      CombineOptions quantized = {.quantize = true};
      const Combined narrow = run(two.combine(all_rows(y), got.handle, quantized));
      for (int64_t j = 0; j < narrow.x_TD.numel(); ++j) {  // two roundings to 1/16 of a number below 4 or so
        ASSERT_NEAR(narrow.x_TD.data<bf16>()[j].to_float(), sums.x_TD.data<bf16>()[j].to_float(), 2.5);
      }
    });
  }
}

TEST_P(TwoLevelTest, EveryLinkCarriesTheBytesOfTheHeader) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const Sizes s = random_sizes(ranks(), random);
  const int of_node = GetParam().of_node;
  std::vector<Tokens> tokens;
  for (int r = 0; r < ranks(); ++r) tokens.push_back(random_tokens(s, seed + static_cast<unsigned>(r)));
  const ExpertMap map{std::span<const int64_t>(s.experts)};
  // Rows from each rank to nodes, and from ranks that pass them on to ranks of their node.
  std::vector<int64_t> out(tokens.size(), 0);
  std::vector<int64_t> in(tokens.size(), 0);
  std::vector<int64_t> onward(tokens.size(), 0);
  std::vector<int64_t> onward_back(tokens.size(), 0);
  for (int r = 0; r < ranks(); ++r) {
    const Tokens& t = tokens[static_cast<size_t>(r)];
    for (int64_t i = 0; i < t.x_TD.rows(); ++i) {
      std::set<int> to;
      for (const int64_t e : t.topk_idx_TK.slice(i, i + 1).span<int64_t>()) {
        if (e >= 0) to.insert(map.owner(e));
      }
      std::set<int> nodes;
      for (const int dest : to) {
        nodes.insert(dest / of_node);
        const int through = dest / of_node * of_node + r % of_node;
        onward[static_cast<size_t>(through)] += through != dest;
        onward_back[static_cast<size_t>(dest)] += through != dest;
      }
      for (const int node : nodes) {
        const bool other = node != r / of_node;
        out[static_cast<size_t>(r)] += other;
        in[static_cast<size_t>(node * of_node + r % of_node)] += other;
      }
    }
  }
  on_ranks([&](Group& world) {
    const auto me = static_cast<size_t>(world.rank());
    Buffer buffer(world, map, two_level());
    const Dispatched d = run(buffer.dispatch(tokens[me], DispatchOptions()));
    LinkBytes before = buffer.sent();
    const auto expect = [&](int64_t inside, int64_t between) {
      const LinkBytes now = buffer.sent();
      EXPECT_EQ(now.inside - before.inside, inside);
      EXPECT_EQ(now.between - before.between, between);
      before = now;
    };
    const int64_t b = 2 * s.width;
    run(buffer.dispatch(tokens[me].x_TD, d.handle));
    expect(b * onward[me], b * out[me]);
    run(buffer.combine(d.x_RD, d.handle, Tensor()));
    expect(b * onward_back[me], b * in[me]);
    run(buffer.dispatch(tokens[me], DispatchOptions()));
    const int64_t with_choices = b + s.top_k * (8 + 4);
    const int64_t world_plan = 8 * (1 + kStatementWords) * (ranks() - 1);
    const int64_t rail_plan = 8 * (GetParam().nodes - 1) + 8 * out[me];
    const int64_t node_plan = 8 * ranks() * (of_node - 1);
    expect(with_choices * onward[me] + node_plan, with_choices * out[me] + world_plan + rail_plan);
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, TwoLevelTest,
                         testing::Values(Nodes{1, 1}, Nodes{1, 3}, Nodes{3, 1}, Nodes{2, 2}, Nodes{2, 3},
                                         Nodes{4, 2}, Nodes{3, 4}),
                         [](const auto& info) {
                           return std::to_string(info.param.nodes) + "x" + std::to_string(info.param.of_node);
                         });

TEST(TwoLevel, RefusesWhatItCannotDo) {
  run_thread_ranks({.ranks = 4}, [](Group& world) {
    const auto with = [&](int of_node) {
      return [&world, of_node] { Buffer(world, 4, {.way = Way::two_level, .ranks_of_node = of_node}); };
    };
    EXPECT_THAT(with(0), ThrowsMessage<Error>(HasSubstr("4 ranks are not nodes of 0")));
    EXPECT_THAT(with(3), ThrowsMessage<Error>(HasSubstr("4 ranks are not nodes of 3")));
    Buffer buffer(world, 4, {.way = Way::two_level, .ranks_of_node = 2});
    DispatchOptions options = {.order = PairOrder::by_slot};
    const Tokens tokens = {Tensor::zeros({1, 2}, DType::f32), Tensor::zeros({1, 1}, DType::i64)};
    EXPECT_THAT([&] { run(buffer.dispatch(tokens, options)); },
                ThrowsMessage<Error>(HasSubstr(world.rank() == 0 ? "summed by rank" : "dispatch: rank 0")));
    // A mistake of one rank is an error on all here too.
    Tokens wrong = tokens;
    wrong.topk_idx_TK = Tensor::zeros({1, 1}, DType::i64);
    if (world.rank() == 2) wrong.topk_idx_TK.data<int64_t>()[0] = 4;
    EXPECT_THAT([&] { run(buffer.dispatch(wrong, DispatchOptions())); },
                ThrowsMessage<Error>(HasSubstr("rank 2: token 0 chooses expert 4")));
    run(buffer.dispatch(tokens, DispatchOptions()));
  });
}

}  // namespace
}  // namespace phalanx::ep
