#include "phalanx/tensor/tensor.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "phalanx/base/error.h"
#include "phalanx/tensor/memory_file.h"
#include "phalanx/tensor/rows.h"

namespace phalanx {
namespace {

TEST(Tensor, SlicesAndViewsShareStorage) {
  const Tensor t = Tensor::zeros({4, 3}, DType::f32);
  Tensor row = t.slice(2, 3);
  row.span<float>()[1] = 5;
  EXPECT_EQ(t.data<float>()[7], 5);
  EXPECT_EQ(t.view({2, 6}).slice(1, 2).data<float>()[1], 5);
  EXPECT_EQ(t.row_size(), 3);
  EXPECT_EQ(t.slice(4, 4).numel(), 0);
  EXPECT_EQ(t.slice(4, 4).row_size(), 3);
}

TEST(Tensor, ScalarsAndEmptyTensors) {
  EXPECT_EQ(Tensor::empty({}, DType::f64).numel(), 1);
  const Tensor none = Tensor::empty({0, 5}, DType::i64);
  EXPECT_EQ(none.bytes(), 0u);
  EXPECT_FALSE(Tensor().defined());
  EXPECT_TRUE(none.defined());
}

TEST(Tensor, WrongUseIsABrokenPromise) {
  const Tensor t = Tensor::zeros({4, 3}, DType::f32);
  EXPECT_THROW((void)t.span<double>(), BrokenPromise);
  EXPECT_THROW((void)t.slice(3, 5), BrokenPromise);
  EXPECT_THROW((void)t.slice(3, 2), BrokenPromise);
  EXPECT_THROW((void)t.view({5}), BrokenPromise);
  EXPECT_THROW((void)t.dim(2), BrokenPromise);
  EXPECT_THROW((Shape{1, -1}), BrokenPromise);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1}), BrokenPromise);
}

TEST(Tensor, CopiesMovesAndSelfAssignmentKeepOneCount) {
  const AllocatorScope memory;
  {
    Tensor a = Tensor::zeros({8}, DType::f64);
    Tensor b = a;
    Tensor c = std::move(a);
    EXPECT_FALSE(a.defined());  // NOLINT(bugprone-use-after-move): that is the point
    Tensor& same = b;
    b = same;
    c = b;
    EXPECT_EQ(b.raw(), c.raw());
    EXPECT_GT(cpu_allocator().stats().in_use, 0u);
  }
  EXPECT_EQ(cpu_allocator().stats().in_use, 0u);
}

// A block that another process still uses is not used again here, and counts.
TEST(Allocator, KeepsWhatIsLentUntilItIsReturned) {
  const AllocatorScope memory(MemoryFile::create());
  Tensor lent = Tensor::zeros({1000}, DType::f32);
  Storage* const block = lent.storage();
  ASSERT_TRUE(block->home->place(*block));
  block->lent += 2;
  lent = Tensor();
  const size_t in_use = cpu_allocator().stats().in_use;
  EXPECT_GE(in_use, 4000u);
  EXPECT_NE(Tensor::zeros({1000}, DType::f32).storage(), block);
  --block->lent;
  const Tensor other = Tensor::zeros({1000}, DType::f32);
  EXPECT_NE(other.storage(), block);
  --block->lent;
  EXPECT_EQ(Tensor::zeros({1000}, DType::f32).storage(), block);
  EXPECT_EQ(cpu_allocator().stats().in_use, in_use);  // of `other`
}

TEST(Allocator, HasNoPlaceWithoutAFile) {
  const AllocatorScope memory;
  const Tensor t = Tensor::zeros({1000}, DType::f32);
  EXPECT_FALSE(t.storage()->home->place(*t.storage()));
}

TEST(Allocator, ReusesBlocksAndCountsBytes) {
  const AllocatorScope memory;
  std::mt19937 random(std::random_device{}());
  for (int i = 0; i < 50; ++i) (void)Tensor::empty({static_cast<int64_t>(1000 + random() % 20)}, DType::f32);
  const MemoryStats warm = cpu_allocator().stats();
  EXPECT_LE(warm.system_allocations, 2);
  for (int i = 0; i < 50; ++i) (void)Tensor::empty({1010}, DType::f32);
  EXPECT_EQ(cpu_allocator().stats().system_allocations, warm.system_allocations);
  const Tensor big = Tensor::empty({1 << 20}, DType::u8);
  EXPECT_GE(cpu_allocator().stats().in_use, big.bytes());
  EXPECT_LE(cpu_allocator().stats().in_use, big.bytes() * 5 / 4 + 64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(big.raw()) % 64, 0u);
}

// A block may be dropped on another thread than it was taken on, and after its allocator's scope has ended.
TEST(Allocator, BlocksOutliveTheirScopeAndThread) {
  Tensor kept;
  std::thread([&] {
    const AllocatorScope memory;
    kept = Tensor::zeros({1000}, DType::f32);
    kept.span<float>()[999] = 7;
    (void)Tensor::zeros({5000}, DType::f32);
  }).join();
  EXPECT_EQ(kept.span<float>()[999], 7);
  kept = Tensor();
}

TEST(Allocator, TooManyBytesAreAnError) {
  for (const int64_t n : {int64_t{1} << 45, int64_t{1} << 60, (int64_t{1} << 61) - 1, int64_t{1} << 62}) {
    EXPECT_THROW((void)Tensor::empty({n, 4}, DType::f64), Error) << n;
  }
  EXPECT_EQ(Tensor::zeros({2}, DType::f32).numel(), 2);  // it works on
}

TEST(Rows, TheLiveCountIsSharedAndChecked) {
  const Rows x = all_rows(Tensor::zeros({6, 2}, DType::f32));
  const Rows y = rows_like(x, {0, 5}, DType::f64);
  x.live.data<int64_t>()[0] = 4;
  EXPECT_EQ(y.count(), 4);
  EXPECT_EQ(y.capacity(), 6);
  x.live.data<int64_t>()[0] = 7;
  EXPECT_THROW((void)y.count(), BrokenPromise);
}

}  // namespace
}  // namespace phalanx
