#include "phalanx/base/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace phalanx {
namespace {

// Known answers of Random123's philox4x32 with 10 rounds.
TEST(Philox, MatchesThePublishedVectors) {
  EXPECT_EQ(philox(0, 0, 0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, NamesSeedsAndStepsGiveUnrelatedNumbers) {
  std::set<uint32_t> seen;
  for (const uint64_t seed : {0, 1, 2}) {
    for (const char* name : {"a", "b", "layers.1", "layers.2"}) {
      for (const uint64_t step : {0, 1}) seen.insert(RandomStream(seed, name).bits(5, step));
    }
  }
  EXPECT_EQ(seen.size(), 24u);
}

TEST(RandomStream, UniformAndNormalHaveTheirMoments) {
  const RandomStream stream(3, "moments");
  constexpr int kDraws = 200000;
  double uniform = 0, normal = 0, squares = 0, fourth = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = stream.uniform(i);
    ASSERT_TRUE(u >= 0 && u < 1);
    uniform += u;
    const double x = stream.normal(i, 1);
    ASSERT_TRUE(std::isfinite(x));
    normal += x;
    squares += x * x;
    fourth += x * x * x * x;
  }
  EXPECT_NEAR(uniform / kDraws, 0.5, 0.005);
  EXPECT_NEAR(normal / kDraws, 0, 0.01);
  EXPECT_NEAR(squares / kDraws, 1, 0.02);
  EXPECT_NEAR(fourth / kDraws, 3, 0.15);
}

}  // namespace
}  // namespace phalanx
