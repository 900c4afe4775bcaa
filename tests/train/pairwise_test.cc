#include "phalanx/train/pairwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "phalanx/base/text.h"

namespace phalanx {
namespace {

using Pairs = std::set<std::pair<std::string, std::string>>;

void add_pairs(const Settings& c, Pairs& pairs) {
  for (const std::string& a : c.values) {
    for (const std::string& b : c.values) {
      if (a < b) pairs.insert({a, b});
    }
  }
}

TEST(CoverPairs, EveryPairAndEveryGroupOfRandomCases) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    std::vector<Settings> cases;
    for (unsigned i = 0; i < 1 + random() % 200; ++i) {
      Settings c = {format("group {}", random() % 9), {}};
      for (const char* option : {"a", "b", "c", "d"}) {
        if (random() % 5 != 0) c.values.push_back(format("{}={}", option, random() % 3));
      }
      cases.push_back(c);
    }
    Pairs wanted;
    Pairs got;
    std::set<std::string> groups;
    std::set<std::string> got_groups;
    for (const Settings& c : cases) {
      add_pairs(c, wanted);
      groups.insert(c.group);
    }
    const std::vector<size_t> chosen = cover_pairs(cases);
    for (const size_t i : chosen) {
      add_pairs(cases[i], got);
      got_groups.insert(cases[i].group);
    }
    EXPECT_EQ(got, wanted);
    EXPECT_EQ(got_groups, groups);
    EXPECT_TRUE(std::ranges::is_sorted(chosen));
  }
}

TEST(CoverPairs, IsFewOfAWholeProduct) {
  std::vector<Settings> product;
  for (int i = 0; i < 4 * 4 * 4 * 4; ++i) {
    product.push_back(
        {"",
         {format("a{}", i % 4), format("b{}", i / 4 % 4), format("c{}", i / 16 % 4), format("d{}", i / 64)}});
  }
  EXPECT_LE(cover_pairs(product).size(), 28U);  // 16 is the least there can be
  EXPECT_TRUE(cover_pairs({}).empty());
}

}  // namespace
}  // namespace phalanx
