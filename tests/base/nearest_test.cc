#include "phalanx/base/nearest.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace phalanx {
namespace {

TEST(Nearest, CountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("widht", "width"), 1u);  // a swap of neighbours is one edit
  EXPECT_EQ(edit_distance("abcd", "badc"), 2u);
  const std::vector<std::string> none;
  EXPECT_EQ(nearest("x", none), "");
}

TEST(Nearest, IsADistance) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto word = [&] {
    std::string w;
    for (unsigned n = random() % 8; n-- > 0;) w += static_cast<char>('a' + random() % 3);
    return w;
  };
  for (int i = 0; i < 500; ++i) {
    const std::string a = word();
    const std::string b = word();
    EXPECT_EQ(edit_distance(a, b), edit_distance(b, a)) << a << " " << b;
    EXPECT_EQ(edit_distance(a, b) == 0, a == b) << a << " " << b;
    EXPECT_LE(edit_distance(a, b), std::max(a.size(), b.size())) << a << " " << b;
  }
}

}  // namespace
}  // namespace phalanx
