#include "phalanx/tensor/mapped.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "phalanx/base/error.h"
#include "tests/temporary_directory.h"

namespace phalanx {
namespace {

TEST(Mapped, IsMemoryOfAFileThatLeavesNothing) {
  const testing::TemporaryDirectory dir;
  const MemoryStats before = cpu_allocator().stats();
  {
    const Tensor t = mapped_zeros({3, 100'001}, DType::f32, dir.path());
    EXPECT_EQ(t.shape(), Shape({3, 100'001}));
    for (const float v : t.span<float>()) ASSERT_EQ(v, 0);
    t.data<float>()[300'002] = 7;
    const Tensor row = t.slice(2, 3);
    EXPECT_EQ(row.data<float>()[100'000], 7);
    EXPECT_EQ(cpu_allocator().stats().in_use, before.in_use);
    EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  EXPECT_EQ(mapped_zeros({0}, DType::f64, dir.path()).numel(), 0);
}

TEST(Mapped, SaysWhereItCannotBe) {
  const testing::TemporaryDirectory dir;
  try {
    mapped_zeros({8}, DType::f32, dir.path() / "missing");
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("missing: no file can be made there: "));
  }
  // No disk has so much room.
  EXPECT_THROW(mapped_zeros({int64_t{1} << 50}, DType::f32, dir.path()), Error);
}

}  // namespace
}  // namespace phalanx
