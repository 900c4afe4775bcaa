#include "phalanx/tensor/size_class.h"

#include <gtest/gtest.h>

#include <random>

namespace phalanx {
namespace {

TEST(SizeClass, HoldsWhatIsAskedForAndLosesLittle) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 10'000; ++i) {
    const size_t n = 256 + (random() >> (18 + i % 40));  // of every order of magnitude
    const SizeClass c = size_class(n);
    const double most = n > size_t{1} << 28 ? 1.0 / 128 : 1.0 / 4;
    EXPECT_GE(c.bytes, n);
    EXPECT_LE(static_cast<double>(c.bytes), static_cast<double>(n) * (1 + most)) << n;
    EXPECT_EQ(size_class(c.bytes).bytes, c.bytes) << n;
    EXPECT_EQ(size_class(c.bytes).index, c.index) << n;
  }
  for (const size_t n : {0, 1, 255, 256}) EXPECT_EQ(size_class(n).bytes, 256u);
}

// Each class begins behind the one before it, up to all the memory that there may be.
TEST(SizeClass, ClassesFollowOneAnother) {
  SizeClass c = size_class(256);
  while (c.bytes < size_t{1} << 46) {
    const SizeClass next = size_class(c.bytes + 1);
    ASSERT_EQ(next.index, c.index + 1) << c.bytes;
    ASSERT_GT(next.bytes, c.bytes);
    c = next;
  }
  EXPECT_LT(c.index, SizeClass::kCount);
  EXPECT_LT(size_class(size_t{1} << 63).index, SizeClass::kCount);
}

}  // namespace
}  // namespace phalanx
