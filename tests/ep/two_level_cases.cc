#include "tests/ep/two_level_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>

namespace phalanx::ep {
namespace {

// T tokens of a rank, D width, K top-k

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

Tokens random_tokens(const Sizes& s, unsigned seed, int64_t n = -1) {
  std::mt19937 random(seed);
  if (n < 0) n = random() % 4 == 0 ? 0 : static_cast<int64_t>(random() % 25);
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

// Sums inside nodes, rounded, then over nodes. layouts: on one level, of all ranks up to this one.
void expect_sums(const Tensor& got, std::span<const Layout> layouts, int of_node) {
  const auto row_of = [&](size_t rank, int64_t row) {  // behind those of lower ranks
    for (const Layout& lower : layouts.first(layouts.size() - 1)) row += lower.rows[rank];
    return row;
  };
  for (int64_t t = 0; t < layouts.back().tokens(); ++t) {
    const Pairs pairs(layouts.back(), t);
    for (int64_t d = 0; d < got.dim(1); ++d) {
      std::map<int, float> of_node_sum;
      for (size_t p = 0; p < pairs.ranks.size(); ++p) {
        const int rank = pairs.ranks[p];
        const int64_t row = row_of(static_cast<size_t>(rank), pairs.rows[p]);
        of_node_sum[rank / of_node] += made(rank, row, d).to_float();
      }
      float sum = 0;
      for (const auto& [node, part] : of_node_sum) sum += bf16::from(part).to_float();
      ASSERT_EQ(got.data<bf16>()[t * got.dim(1) + d].to_float(), bf16::from(sum).to_float()) << "token " << t;
    }
  }
}

// Of each rank, rows that it sends to other nodes, that it sends back to them, that it passes on inside its
// node, and that it returns to those which passed them on.
struct LinkRows {
  LinkRows(const std::vector<Tokens>& tokens, const ExpertMap& map, int of_node)
      : out(tokens.size(), 0), in(out), onward(out), onward_back(out) {
    for (int r = 0; r < std::ssize(tokens); ++r) {
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
          flat += dest / of_node != r / of_node;
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
  }
  std::vector<int64_t> out;
  std::vector<int64_t> in;
  std::vector<int64_t> onward;
  std::vector<int64_t> onward_back;
  int64_t flat = 0;  // of all ranks to ranks of other nodes, on one level
};

// The rows that a buffer receives, the sums of what is made of them, and the bytes that moved for both.
struct Passage {
  Passage(Group& world, const ExpertMap& map, const BufferOptions& options, const Tokens& tokens,
          const CombineOptions& combine) {
    Buffer buffer(world, map, options);
    const Dispatched in = run(buffer.dispatch(tokens, DispatchOptions()));
    const LinkBytes before = buffer.sent();
    rows = run(buffer.dispatch(tokens.x_TD, in.handle)).data;
    const Tensor y = all_made(world.rank(), in.x_RD.count(), tokens.x_TD.dim(1));
    sums = run(buffer.combine(all_rows(y), in.handle, combine)).x_TD;
    bytes = {buffer.sent().inside - before.inside, buffer.sent().between - before.between};
    route = in.handle.route;
  }
  Tensor rows;
  Tensor sums;
  LinkBytes bytes;
  Route route;
};

void expect_same_bits(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.shape(), b.shape());
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0);
}

// Rows of a route to other ranks of the node, and from them.
std::pair<int64_t, int64_t> rows_of_mates(const Route& route, int rank, int of_node) {
  std::pair<int64_t, int64_t> rows = {0, 0};
  for (int r = rank / of_node * of_node; r < (rank / of_node + 1) * of_node; ++r) {
    if (r == rank) continue;
    rows.first += route.layout.rows[static_cast<size_t>(r)];
    rows.second += route.recv_rows[static_cast<size_t>(r)];
  }
  return rows;
}

}  // namespace

void check_by_size(Group& world, int of_node, unsigned seed) {
  std::mt19937 random(seed);
  Sizes s = random_sizes(world.size(), random);
  s.width = 1 << 10;
  const ExpertMap map{std::span<const int64_t>(s.experts)};
  constexpr int64_t kFew = kTwoLevelsPay / (2 << 10);  // the most tokens that go on one level
  const auto most_on = static_cast<int>(random() % static_cast<unsigned>(world.size()));
  for (const int64_t tokens : {int64_t{0}, kFew, kFew + 1}) {
    const Tokens mine = random_tokens(s, seed + static_cast<unsigned>(world.rank()),
                                      world.rank() == most_on ? tokens : tokens / 3);
    BufferOptions like = {.way = Way::messages};
    if (tokens > kFew) like = {.way = Way::two_level, .ranks_of_node = of_node};
    for (const bool quantize : {false, true}) {
      const CombineOptions combine = {.quantize = quantize};
      const Passage got(world, map, {.way = Way::by_size, .ranks_of_node = of_node}, mine, combine);
      const Passage want(world, map, like, mine, combine);
      expect_same_bits(got.rows, want.rows);
      expect_same_bits(got.sums, want.sums);
      LinkBytes bytes = want.bytes;
      if (tokens <= kFew) {
        const auto [out, back] = rows_of_mates(got.route, world.rank(), of_node);
        bytes.inside = s.width * (2 * out + 2 * back);
        if (quantize) bytes.inside = s.width * 2 * out + (s.width + s.width / 128 * 4) * back;
        bytes.between -= bytes.inside;
      }
      EXPECT_EQ(got.bytes.inside, bytes.inside) << tokens;
      EXPECT_EQ(got.bytes.between, bytes.between) << tokens;
    }
  }
}

void check_phase(Group& world, int of_node, Phase phase, unsigned seed) {
  std::mt19937 random(seed);
  const Sizes s = random_sizes(world.size(), random);
  const ExpertMap map{std::span<const int64_t>(s.experts)};
  const Tokens mine = random_tokens(s, seed + static_cast<unsigned>(world.rank()), 9);
  const std::map<Phase, Way> ways = {
      {Phase::any, Way::by_size}, {Phase::prefill, Way::two_level}, {Phase::decode, Way::messages}};
  const Passage got(world, map, {.phase = phase, .ranks_of_node = of_node}, mine, {});
  const Passage want(world, map, {.way = ways.at(phase), .ranks_of_node = of_node}, mine, {});
  EXPECT_EQ(got.bytes.inside, want.bytes.inside);
  EXPECT_EQ(got.bytes.between, want.bytes.between);
}

void check_two_level(Group& world, const BufferOptions& two_level, unsigned seed) {
  std::mt19937 random(seed);
  const Sizes s = random_sizes(world.size(), random);
  const unsigned first = static_cast<unsigned>(random());
  const ExpertMap map{std::span<const int64_t>(s.experts)};
  Tokens mine;
  std::vector<Layout> layouts;
  for (int r = 0; r <= world.rank(); ++r) {
    mine = random_tokens(s, first + static_cast<unsigned>(r));
    layouts.push_back(layout_of(mine.topk_idx_TK, map));
  }
  Buffer one(world, map);
  Buffer two(world, map, two_level);
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
  ASSERT_NO_FATAL_FAILURE(expect_sums(sums.x_TD, layouts, two_level.ranks_of_node));
  for (int64_t j = 0; j < sums.weights_TK.numel(); ++j) {
    const bool none = mine.topk_idx_TK.data<int64_t>()[j] < 0;
    ASSERT_EQ(sums.weights_TK.data<float>()[j], none ? 0 : mine.weights_TK.data<float>()[j]);
  }
  CombineOptions quantized = {.quantize = true};
  const Combined narrow = run(two.combine(all_rows(y), got.handle, quantized));
  for (int64_t j = 0; j < narrow.x_TD.numel(); ++j) {  // two roundings to 1/16 of a number below 4 or so
    ASSERT_NEAR(narrow.x_TD.data<bf16>()[j].to_float(), sums.x_TD.data<bf16>()[j].to_float(), 2.5);
  }
}

void check_link_bytes(Group& world, const BufferOptions& two_level, unsigned seed) {
  const int ranks = world.size();
  std::mt19937 random(seed);
  const Sizes s = random_sizes(ranks, random);
  const int of_node = two_level.ranks_of_node;
  std::vector<Tokens> tokens;
  for (int r = 0; r < ranks; ++r) tokens.push_back(random_tokens(s, seed + static_cast<unsigned>(r)));
  const ExpertMap map{std::span<const int64_t>(s.experts)};
  const LinkRows rows(tokens, map, of_node);
  const auto me = static_cast<size_t>(world.rank());
  Buffer buffer(world, map, two_level);
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
  expect(b * rows.onward[me], b * rows.out[me]);
  run(buffer.combine(d.x_RD, d.handle, Tensor()));
  expect(b * rows.onward_back[me], b * rows.in[me]);
  run(buffer.dispatch(tokens[me], DispatchOptions()));
  const int64_t with_choices = b + s.top_k * (8 + 4);
  const int64_t world_plan = 8 * (1 + kStatementWords) * (ranks - 1);
  const int64_t rail_plan = 8 * (ranks / of_node - 1) + 8 * rows.out[me];
  const int64_t node_plan = 8 * ranks * (of_node - 1);
  expect(with_choices * rows.onward[me] + node_plan, with_choices * rows.out[me] + world_plan + rail_plan);
}

int64_t send_much(Group& world, const BufferOptions& options, int of_node, int rounds) {
  const Sizes s = {std::vector<int64_t>(static_cast<size_t>(world.size()), 4), 1024, 6};
  const ExpertMap map{std::span<const int64_t>(s.experts)};
  std::vector<Tokens> tokens;
  for (int r = 0; r < world.size(); ++r) tokens.push_back(random_tokens(s, static_cast<unsigned>(4 * r)));
  int64_t rows = 0;
  const LinkRows over_links(tokens, map, of_node);
  for (const int64_t n : over_links.out) rows += n;
  if (options.ranks_of_node == 0) rows = over_links.flat;
  const Tokens& mine = tokens[static_cast<size_t>(world.rank())];
  Buffer buffer(world, map, options);
  const Dispatched in = run(buffer.dispatch(mine, DispatchOptions()));
  for (int i = 0; i < rounds; ++i) {
    run(buffer.dispatch(mine.x_TD, in.handle));
    run(buffer.combine(in.x_RD, in.handle, Tensor()));
  }
  return 2 * rounds * rows * 2 * s.width;
}

}  // namespace phalanx::ep
