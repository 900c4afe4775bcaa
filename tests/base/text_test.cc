#include "phalanx/base/text.h"

#include <gtest/gtest.h>

#include "phalanx/base/check.h"
#include "phalanx/base/error.h"

namespace phalanx {
namespace {

TEST(Text, FormatsEveryKindOfValue) {
  const std::vector<int64_t> shape = {2, 3};
  EXPECT_EQ(format("{} {} {} {} {} {:.2f} {}", 1, -2l, 3u, true, "x", 0.5, std::span<const int64_t>(shape)),
            "1 -2 3 true x 0.50 [2, 3]");
}

TEST(Text, APatternThatDoesNotFitIsPrintedWithItsValues) {
  EXPECT_EQ(format("{} and {}", 1), "{} and {} | 1");
  EXPECT_EQ(format("brace {", 2), "brace { | 2");
}

TEST(Check, NamesConditionPlaceAndValues) {
  try {
    PHX_CHECK(1 + 1 == 3, "row {} of {}", 5, 4);
    FAIL();
  } catch (const BrokenPromise& e) {
    const std::string what = e.what();
    EXPECT_NE(what.find("1 + 1 == 3"), std::string::npos);
    EXPECT_NE(what.find("text_test.cc"), std::string::npos);
    EXPECT_NE(what.find("row 5 of 4"), std::string::npos);
  }
  EXPECT_THROW(throw Error("bad {}", "key"), std::runtime_error);
}

}  // namespace
}  // namespace phalanx
