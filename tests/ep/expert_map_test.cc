#include "phalanx/ep/expert_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace phalanx::ep {
namespace {

TEST(ExpertMap, SaysWhoHasWhat) {
  const std::vector<int64_t> counts = {2, 0, 3};
  const ExpertMap map(counts);
  EXPECT_EQ(map.ranks(), 3);
  EXPECT_EQ(map.experts(), 5);
  EXPECT_EQ(map.first(1), 2);
  EXPECT_EQ(map.count(1), 0);
  EXPECT_EQ(map.first(2), 2);
  EXPECT_EQ(map.count(2), 3);
  for (int64_t e = 0; e < 5; ++e) EXPECT_EQ(map.owner(e), e < 2 ? 0 : 2);
}

TEST(ExpertMap, RefusesWhatDoesNotFit) {
  EXPECT_THAT(
      [] {
        ExpertMap(std::vector<int64_t>{1, -1});
      },
      ::testing::ThrowsMessage<Error>("rank 1 has -1 experts, at most 1048576"));
  EXPECT_THROW(ExpertMap::even(4, 3), Error);
}

}  // namespace
}  // namespace phalanx::ep
