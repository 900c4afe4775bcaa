// Nodes of several ranks: rows arrive as on one level, sums are those of a slow account of two, and every
// link carries the bytes of the header.
#include "phalanx/ep/two_level.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "phalanx/base/error.h"
#include "phalanx/comm/transport/threads.h"
#include "tests/ep/two_level_cases.h"

namespace phalanx::ep {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Nodes {
  int nodes;
  int of_node;
};

class TwoLevelTest : public testing::TestWithParam<Nodes> {
 protected:
  int ranks() const { return GetParam().nodes * GetParam().of_node; }
  void on_ranks(const RankBody& body) const { run_thread_ranks({.ranks = ranks()}, body); }
  BufferOptions two_level() const { return {.way = Way::two_level, .ranks_of_node = GetParam().of_node}; }
};

TEST_P(TwoLevelTest, RowsAndSumsAreThoseOfASlowAccount) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (unsigned i = 0; i < 8; ++i) {
    on_ranks([&](Group& world) { check_two_level(world, two_level(), seed + i); });
  }
}

TEST_P(TwoLevelTest, EveryLinkCarriesTheBytesOfTheHeader) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  on_ranks([&](Group& world) { check_link_bytes(world, two_level(), seed); });
}

TEST_P(TwoLevelTest, BySizeFewTokensGoOnOneLevel) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  on_ranks([&](Group& world) { check_by_size(world, GetParam().of_node, seed); });
}

// Also where no rank has a token: the way that is asked for is taken, with the bytes of its plan.
TEST_P(TwoLevelTest, NothingIsNotSentByOtherWays) {
  const int of_node = GetParam().of_node;
  on_ranks([&](Group& world) {
    Buffer buffer(world, world.size(), two_level());
    const Tokens none = {Tensor::zeros({0, 2}, DType::f32), Tensor::zeros({0, 1}, DType::i64)};
    const LinkBytes before = buffer.sent();
    run(buffer.dispatch(none, DispatchOptions()));
    EXPECT_EQ(buffer.sent().inside - before.inside, 8 * world.size() * (of_node - 1));
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
