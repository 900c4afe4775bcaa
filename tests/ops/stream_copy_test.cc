#include "phalanx/ops/stream_copy.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "phalanx/base/check.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {
namespace {

TEST(StreamCopy, CopiesWholeLinesFromAnywhere) {
  std::mt19937 random{std::random_device{}()};
  const Tensor from = Tensor::empty({5000}, DType::u8);
  for (uint8_t& b : from.span<uint8_t>()) b = static_cast<uint8_t>(random());
  for (int i = 0; i < 300; ++i) {
    const size_t bytes = random() % 70 * 64;
    const size_t at = random() % (5000 - bytes + 1);
    const Tensor to = Tensor::zeros({70 * 64 + 64}, DType::u8);
    stream_copy(to.raw(), from.raw() + at, bytes);
    stream_fence();
    ASSERT_EQ(std::memcmp(to.raw(), from.raw() + at, bytes), 0);
    ASSERT_EQ(to.data<uint8_t>()[bytes], 0);  // and no byte more
  }
}

TEST(StreamCopy, RefusesOtherPlacesAndSizes) {
  const Tensor t = Tensor::zeros({256}, DType::u8);
  EXPECT_FALSE(can_stream(t.raw() + 32, 64));
  EXPECT_FALSE(can_stream(t.raw(), 65));
  EXPECT_THROW(stream_copy(t.raw() + 32, t.raw() + 128, 64), BrokenPromise);
}

}  // namespace
}  // namespace phalanx
